"""The folder of a build's compiled kernels."""

from __future__ import annotations

import pytest

from runbook.steps.common import jit


@pytest.mark.parametrize(
    ("gpus", "named"),
    [
        ([], "cpu"),
        (["12.0", "12.0"], "sm_120"),
        (["9.0"], "sm_90"),
        (["12.0", "8.9"], "sm_120-sm_89"),
    ],
)
def test_architecture(gpus, named):
    assert jit.architecture({"gpus": [{"architecture": a} for a in gpus]}) == named
