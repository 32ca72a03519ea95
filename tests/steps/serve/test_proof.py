"""Words that the log of a start must have: another backend than meant is a finding."""

from __future__ import annotations

import pytest

from runbook.protocol import PreconditionNotMet

SAID = "Using 'EMULATION' WNA16 MoE backend"
"""What the recorded log of a start on a CPU says."""


def test_the_wanted_backend_is_no_finding(bench, step):
    ctx = bench.context(proof=[SAID])
    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok and check.reasons == ()
    assert check.outputs["backends"] == [SAID]


def test_another_backend_is_named(bench, step):
    ctx = bench.context(proof=["Using 'HUMMING' WNA16 MoE backend"])
    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok
    (reason,) = check.reasons
    assert (reason.code, reason.severity) == ("backend_unexpected", "warning")
    assert reason.message == (
        f"the log of the start does not say Using 'HUMMING' WNA16 MoE backend; it says {SAID}"
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
