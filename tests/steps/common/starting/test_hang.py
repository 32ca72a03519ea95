"""What helps against a hang, and never what is set already."""

from __future__ import annotations

import pytest

from runbook.steps.common.starting.hang import CAUSES, remedy

OFF = "--disable-custom-all-reduce"
QUIET = "--no-enable-flashinfer-autotune"
CONFIG = ["--kernel-config", '{"enable_flashinfer_autotune": false}']


@pytest.mark.parametrize(
    ("code", "argv", "env", "says", "says_not"),
    [
        ("collective_hang", [], {}, ["disable_custom_all_reduce", "NCCL_P2P_DISABLE"], ["IOMMU"]),
        ("collective_hang", [OFF], {}, ["NCCL_P2P_DISABLE"], ["disable_custom_all_reduce"]),
        ("collective_hang", [OFF], {"NCCL_P2P_DISABLE": "1"}, ["IOMMU"], ["NCCL_P2P_DISABLE"]),
        ("autotune_deadlock", [], {}, [QUIET], []),
        ("autotune_deadlock", [QUIET], {}, ["off"], [QUIET]),
        ("autotune_deadlock", CONFIG, {}, ["off"], [QUIET]),
        ("rank_stopped", [], {}, ["kill -CONT"], []),
    ],
)
def test_remedy(code, argv, env, says, says_not):
    text = str(remedy(code, {"argv": ["vllm", *argv], "env": env}))
    assert "`runbook run`" in text
    assert all(words in text for words in says)
    assert not any(words in text for words in says_not)


@pytest.mark.parametrize("code", CAUSES)
def test_every_hang_has_one(code):
    assert str(remedy(code, {"argv": [], "env": {}}))
