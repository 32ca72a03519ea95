"""What a caller can act upon while a run goes on, by the events of its journal."""

from __future__ import annotations

import json

import pytest

from runbook.state import journal, matters

ERROR = {"code": "c", "message": "m"}
WAITING = {"type": "step.waiting", "step": "a", "state": "waiting"}
FAILED = {"type": "attempt.failed", "step": "a", "error": ERROR}
SERVED = {"type": "attempt.succeeded", "step": "a", "outputs": {"endpoint": "http://h"}}
STARTED = {"type": "attempt.started", "step": "a", "attempt": 1, "log": ""}


def write(run, events):
    time = "2026-01-01T00:00:00Z"
    lines = [{"seq": n, "time": time, **event} for n, event in enumerate(events, 1)]
    (run / journal.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([], {}),
        ([{"type": "run.started"}, WAITING], {"a": "waiting"}),
        ([{**WAITING, "state": "retrying"}], {}),
        ([FAILED], {"a": "failed"}),
        ([{**FAILED, "retry_in": None}], {"a": "failed"}),
        ([{**FAILED, "retry_in": 0.5}], {}),
        ([{**FAILED, "error": {**ERROR, "code": "cancelled"}}], {}),
        ([{**FAILED, "retry_in": 0.5, "error": {**ERROR, "code": "cancelled"}}], {}),
        ([SERVED], {"a": "served"}),
        ([{**SERVED, "outputs": {"endpoint": ""}}], {}),
        ([{**SERVED, "outputs": {}}], {}),
        ([{**SERVED, "outputs": ["endpoint"]}], {}),
        ([{"type": "attempt.succeeded", "step": "a"}], {}),
        # What was settled is none any more, until it is again.
        ([WAITING, {"type": "step.approved", "step": "a"}], {}),
        ([WAITING, {"type": "step.approved", "step": "b"}], {"a": "waiting"}),
        ([FAILED, {"type": "step.decided", "step": "a"}], {}),
        ([FAILED, STARTED], {}),
        ([FAILED, STARTED, SERVED], {"a": "served"}),
        ([STARTED, FAILED], {"a": "failed"}),
        ([WAITING, {"type": "run.carried", "steps": {}}, {**FAILED, "step": "b"}],
         {"a": "waiting", "b": "failed"}),
    ],
)  # fmt: skip
def test_what_matters_of_a_run(tmp_path, events, found):
    assert matters.of_run(write(tmp_path, events)) == found


def test_what_was_told_before_is_not_told_again(tmp_path):
    write(tmp_path, [WAITING, {**FAILED, "step": "b"}])
    assert matters.of_run(tmp_path, 1) == {"b": "failed"}
    assert matters.of_run(tmp_path, 2) == {}
