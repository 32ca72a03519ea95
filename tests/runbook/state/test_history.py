"""What a journal says of each step, from a table of events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from runbook.state import journal
from runbook.state.history import LastRun, RunRecord, StepRecord, last_attempt
from runbook.state.workspace import Workspace

FOLDED = yaml.safe_load((Path(__file__).parent / "folded.yaml").read_text())


def at(second):
    return "" if second is None else f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}Z"


def write(run, events):
    run.mkdir(exist_ok=True)
    lines = [{"seq": n, "time": at(n), **event} for n, event in enumerate(events, 1)]
    (run / journal.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def told(record: StepRecord):
    return {name: getattr(record, name) for name in StepRecord.__slots__}


NOTHING = told(StepRecord("x"))


@pytest.mark.parametrize("row", FOLDED, ids=[row["name"] for row in FOLDED])
def test_a_step_folded_from_its_events(tmp_path, row):
    record = RunRecord(write(tmp_path, row["events"]))
    expected = {**NOTHING, **row["step"], "since": at(row["step"]["since"])}
    assert told(record.steps["one"]) == expected
    assert record.last_seq == len(row["events"])


def test_a_record_of_nothing():
    assert told(StepRecord("x")) == {
        "state": "x", "since": "", "attempt": 0, "log": "", "process": None, "progress": None,
        "error": None, "question": "",
    }  # fmt: skip


def test_a_run_folded_from_its_events(tmp_path):
    run = tmp_path / "000001-x"
    empty = RunRecord(run)
    assert (empty.id, empty.started, empty.finished, empty.exit_code) == ("000001-x", "", "", None)
    assert (empty.result, empty.errors, empty.last_seq, empty.steps) == (None, [], 0, {})
    events = [
        {"type": "run.started", "step": "of no step"},
        {"type": "of a later version"},
        {"type": "run.carried", "steps": {"z": {"state": "failed", "since": at(9), "log": "/z"}}},
        {"type": "step.satisfied", "step": "a"},
        {"type": "run.finished", "exit_code": 1, "error": {"code": "c", "message": "m"},
         "errors": [{"code": "d", "message": "m"}], "step": "of no step"},
    ]  # fmt: skip
    record = RunRecord(write(run, events))
    assert (record.started, record.finished, record.exit_code) == (at(1), at(5), 1)
    assert record.result == {"code": "c", "message": "m"}
    assert record.errors == [{"code": "d", "message": "m"}]
    assert set(record.steps) == {"a", "z"}
    assert record.unfinished() == {
        "z": {"state": "failed", "since": at(9), "error": None, "log": "/z"}
    }
    record = RunRecord(write(run, [{"type": "run.finished", "exit_code": 0}]))
    assert (record.exit_code, record.result, record.errors) == (0, None, [])


def test_after_an_approval_a_step_and_those_it_blocked_are_decided_anew(tmp_path):
    events = [
        {"type": "step.satisfied", "step": "before"},
        {"type": "step.waiting", "step": "asks", "state": "waiting", "question": "go on?"},
        {"type": "step.waiting", "step": "asks too", "state": "waiting", "question": "and on?"},
        {"type": "step.blocked", "step": "after"},
        {"type": "step.approved", "step": "asks"},
    ]
    steps = RunRecord(write(tmp_path, events)).steps
    assert {name: (one.state, one.since, one.question) for name, one in steps.items()} == {
        "before": ("satisfied", at(1), ""),
        "asks": ("pending", at(5), ""),
        "asks too": ("waiting", at(3), "and on?"),
        "after": ("pending", at(5), ""),
    }


def test_a_summary_leaves_out_most_progress_but_never_the_last(tmp_path):
    progress = {"type": "attempt.progress", "step": "a", "total": 999, "unit": "", "message": ""}
    first = [{**progress, "done": n} for n in range(10)]
    last = [{**progress, "step": "b", "done": n} for n in range(50)]
    events = [*first, {"type": "attempt.started", "step": "a", "attempt": 1, "log": ""}, *last]
    run = write(tmp_path, events)
    text = (run / journal.FILE).read_text().replace('": ', '":')
    (run / journal.FILE).write_text(text)  # as the journal writes: without spaces
    assert RunRecord(run).steps["b"].progress["done"] == 49


@pytest.mark.parametrize(
    ("state", "was"),
    [
        ("running", "interrupted"),
        ("interrupted", "interrupted"),
        ("cancelled", "interrupted"),
        ("failed", "failed"),
        ("retrying", "failed"),
        ("satisfied", ""),
        ("waiting", ""),
        ("undone", ""),
    ],
)
def test_how_the_last_attempt_ended(state, was):
    assert last_attempt(StepRecord(state)) == was


def test_of_no_step_there_was_no_attempt():
    assert last_attempt(None) == ""


def test_the_latest_run_is_read_when_it_is_first_asked_for(tmp_path):
    workspace = Workspace(tmp_path / "workspace")
    asked = LastRun(workspace)
    assert LastRun(workspace).attempt("a") == "", "there was no run"
    workspace.create()
    run = write(workspace.new_run(), [{"type": "step.waiting", "step": "a", "state": "retrying"}])
    workspace.point_latest(run)
    assert asked.attempt("a") == "failed"
    assert asked.attempt("b") == ""
    write(run, [])
    assert asked.attempt("a") == "failed", "it is read once"
