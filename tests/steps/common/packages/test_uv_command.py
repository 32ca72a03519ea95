"""uv is given pip's indexes, and its failures are given in words."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import yaml

from runbook.protocol import StepFailure
from runbook.steps.common.packages.indexes import (
    parse_settings,
    uv_environment,
    uv_index_options,
)
from runbook.steps.common.packages.uv_command import explain, file_requirement
from runbook.steps.common.packages.watch import while_writing, written_by_children

CASES = yaml.safe_load(Path(__file__).with_name("uv_command.yaml").read_text())


@pytest.mark.parametrize("case", CASES["settings"], ids=lambda case: case["id"])
def test_settings_of_pip_reach_uv(case):
    settings = parse_settings(case["listing"])
    assert uv_environment(settings, case.get("environ", {})) == case["variables"]
    assert uv_index_options(settings) == case.get("options", [])


@pytest.mark.parametrize("case", CASES["failures"], ids=lambda case: case["id"])
def test_failures_are_explained(case):
    original = StepFailure("uv failed", code="command_failed", remedy="as it was")
    failure = explain(original, case["output"].splitlines(), "vllm")
    assert failure.code == case["code"]
    assert failure.exit_code == case["exit"]
    assert failure.retryable == case.get("retryable", False)
    assert case["remedy"] in str(failure.remedy)
    assert failure.cause
    assert "user:pass" not in failure.cause + failure.message


def test_wheel_paths_are_quoted():
    line = file_requirement("vllm", Path("/a b/vllm-1+cpu.whl"), "0a")
    assert line == "vllm @ file:///a%20b/vllm-1%2Bcpu.whl --hash=sha256:0a"


def test_writing_children_are_a_sign_of_life_and_idle_ones_are_not():
    reports = []
    with while_writing(lambda: reports.append(written_by_children()), interval=0.05):
        with subprocess.Popen(["sleep", "10"]) as idle:
            time.sleep(0.3)
            assert not any(reports)
            reports.clear()
            with subprocess.Popen(["dd", "if=/dev/zero", "of=/dev/null", "bs=1M"]) as busy:
                time.sleep(0.4)
                busy.kill()
            idle.kill()
        assert max(reports) > 1 << 20
    count = len(reports)
    time.sleep(0.1)
    assert len(reports) == count
