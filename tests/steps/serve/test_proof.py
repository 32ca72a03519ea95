"""Words that the log of a start must have: another backend than meant is a finding."""

from __future__ import annotations

import pytest

from runbook.protocol import PreconditionNotMet
from tests.steps.serve.conftest import READY

MARLIN = "INFO 11-26 13:12:07 [int_wna16.py:356] Using 'MARLIN' WNA16 MoE backend.\n"


def test_the_wanted_backend_is_no_finding(bench, step):
    bench.behave(log=MARLIN + READY)
    ctx = bench.context(proof=["Using 'MARLIN' WNA16 MoE backend"])
    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok and check.reasons == ()
    assert check.outputs["backends"] == ["Using 'MARLIN' WNA16 MoE backend"]


def test_another_backend_is_named(bench, step):
    bench.behave(log=MARLIN + READY)
    ctx = bench.context(proof=["Using 'HUMMING' WNA16 MoE backend"])
    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok
    (reason,) = check.reasons
    assert (reason.code, reason.severity) == ("backend_unexpected", "warning")
    assert reason.message == (
        "the log of the start does not say Using 'HUMMING' WNA16 MoE backend; "
        "it says Using 'MARLIN' WNA16 MoE backend"
    )


def test_a_rule_that_is_broken_ends_the_step_before_a_server_starts(bench, step):
    ctx = bench.context(enable_auto_tool_choice=True)
    codes = [reason.code for reason in step.check(ctx).reasons]
    assert codes == ["not_started", "tool_parser_missing"]
    with pytest.raises(PreconditionNotMet) as caught:
        step.apply(ctx)
    assert caught.value.code == "tool_parser_missing"
    assert bench.service is None
    step.apply(bench.context(enable_auto_tool_choice=True, override=["tool_parser_missing"]))
    assert bench.service.alive()
