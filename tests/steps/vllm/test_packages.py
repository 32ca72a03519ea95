"""uv is given pip's indexes, and its failures are given in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runbook.protocol import StepFailure
from runbook.steps.vllm.packages import (
    explain,
    file_requirement,
    parse_settings,
    uv_environment,
    uv_index_options,
)

CASES = yaml.safe_load(Path(__file__).with_name("packages.yaml").read_text())


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
    assert case["remedy"] in failure.remedy
    assert failure.cause
    assert "user:pass" not in failure.cause + failure.message


def test_wheel_paths_are_quoted():
    line = file_requirement("vllm", Path("/a b/vllm-1+cpu.whl"), "0a")
    assert line == "vllm @ file:///a%20b/vllm-1%2Bcpu.whl --hash=sha256:0a"
