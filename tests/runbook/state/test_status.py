"""What is said of a workspace from its records, without a process."""

from __future__ import annotations

import json
import os

import pytest

from runbook.process import MARK, Identity
from runbook.redact import Redactor
from runbook.state import journal, status
from runbook.state.history import RunRecord
from runbook.state.workspace import Workspace
from tests.runbook.helpers import left_behind

NOTHING = Redactor([])
TIME = "2026-01-02T03:04:05.678Z"
NONE = {
    "state": "never_ran", "since": None, "seconds": None, "attempt": None, "progress": None,
    "error": None, "log": None, "question": None, "endpoint": None,
}  # fmt: skip
BOOK = {"name": "book", "steps": [{"id": "one", "uses": "command"}, {"id": "two", "uses": "serve"}]}
ERROR = {"code": "c", "message": "m"}


def at(second):
    return f"2026-01-01T00:00:{second:02d}Z"


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "w")
    made.create()
    return made


@pytest.fixture
def run(workspace):
    """Writes the journal of a new run; of a list of events."""

    def write(*events):
        folder = workspace.new_run()
        lines = [{"seq": n, "time": at(n), **event} for n, event in enumerate(events, 1)]
        (folder / journal.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
        workspace.point_latest(folder)
        return folder

    return write


def checkpoint(workspace, step, **fields):
    record = {
        "time": TIME, "run": "r", "attempt": 1, "seconds": 2.5, "package": "1",
        "fingerprint": {}, "inputs": {}, "outputs": {}, "outputs_digest": "d", "uses": "command",
        "folder": "/",
    }  # fmt: skip
    workspace.write_checkpoint(step, {**record, **fields}, NOTHING)


def told(workspace):
    return status.status(BOOK, workspace)


def test_of_an_empty_workspace(workspace):
    assert told(workspace) == {
        "book": "book",
        "workspace": str(workspace.root),
        "run": None,
        "steps": [{"id": "one", "uses": "command", **NONE}, {"id": "two", "uses": "serve", **NONE}],
        "endpoint": None,
        "errors": [],
    }
    assert status.latest_run(workspace) is None
    assert status.run_state(workspace, None) == "none"
    assert not status.going_on(workspace)


STARTED = {"type": "attempt.started", "step": "one", "attempt": 2, "log": "/l"}
FAILED = {"type": "attempt.failed", "step": "one", "error": ERROR}
FINISHED = {"type": "run.finished", "exit_code": 1, "errors": [ERROR]}
PROGRESS = {"type": "attempt.progress", "step": "one", "done": 1, "total": 2, "unit": "B",
            "message": "m"}  # fmt: skip
ASKS = {"type": "step.waiting", "step": "one", "state": "waiting", "question": "go on"}
TRIES = {"type": "step.waiting", "step": "one", "state": "retrying"}
TOLD = {"done": 1, "total": 2, "unit": "B", "message": "m", "items": []}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([STARTED, PROGRESS], {"state": "interrupted", "since": at(1), "attempt": 2, "log": "/l",
                               "progress": TOLD}),
        ([STARTED, FAILED, FINISHED], {"state": "failed", "since": at(2), "attempt": 2, "log": "/l",
                                       "error": ERROR}),
        ([ASKS, FINISHED], {"state": "waiting", "since": at(1), "question": "go on"}),
        ([STARTED, FINISHED], {"state": "interrupted", "since": at(1), "attempt": 2, "log": "/l"}),
        ([TRIES], {"state": "interrupted", "since": at(1)}),
        ([{"type": "step.satisfied", "step": "one"}], {}),
        ([{"type": "step.decided", "step": "one"}], {}),
        ([{"type": "undo.finished", "step": "one"}], {}),
    ],
)  # fmt: skip
def test_a_step_of_which_there_is_only_a_journal(workspace, run, events, expected):
    run(*events)
    (one, two) = told(workspace)["steps"]
    assert one == {"id": "one", "uses": "command", **NONE, **expected}
    assert two == {"id": "two", "uses": "serve", **NONE}


def test_a_run_that_ended(workspace, run):
    folder = run({"type": "run.started"}, FAILED, FINISHED)
    answer = told(workspace)
    assert answer["errors"] == [ERROR]
    assert answer["run"] == {
        "id": folder.name, "state": "finished", "started": at(1), "finished": at(3),
        "exit_code": 1, "seq": 3,
    }  # fmt: skip
    assert not status.going_on(workspace)


def test_a_run_that_did_not_end(workspace, run):
    folder = run({"type": "run.started"}, FAILED)
    answer = told(workspace)
    assert answer["errors"] == []
    assert answer["run"] == {
        "id": folder.name, "state": "interrupted", "started": at(1), "finished": None,
        "exit_code": None, "seq": 2,
    }  # fmt: skip
    assert not status.going_on(workspace)


def hold(workspace, folder):
    lock = workspace.acquire()
    workspace.claim(lock, folder.name)
    return lock


def test_a_run_that_goes_on(workspace, run):
    folder = run({"type": "run.started"}, STARTED, {"type": "step.decided", "step": "two"})
    lock = hold(workspace, folder)
    try:
        answer = told(workspace)
        assert answer["run"]["state"] == "running"
        assert [step["state"] for step in answer["steps"]] == ["running", "pending"]
        assert answer["steps"][1]["since"] == at(3)
        assert status.going_on(workspace)
    finally:
        os.close(lock)
    assert told(workspace)["run"]["state"] == "interrupted"


def test_a_worker_that_outlived_its_supervisor(workspace, run):
    folder = run({"type": "run.started"}, STARTED)
    lock = left_behind(lambda: hold(workspace, folder))
    try:
        answer = told(workspace)
        assert answer["run"]["state"] == "orphaned"
        assert answer["steps"][0]["state"] == "orphaned"
    finally:
        os.close(lock)


def test_a_lock_of_another_run_says_nothing_of_this_one(workspace, run):
    folder = run({"type": "run.started"}, FINISHED)
    lock = hold(workspace, folder.with_name("of another"))
    try:
        assert told(workspace)["run"]["state"] == "finished"
        assert status.going_on(workspace), "somebody works there"
    finally:
        os.close(lock)


@pytest.mark.parametrize("left", [[], [77]])
def test_what_a_run_left_behind(workspace, run, monkeypatch, left):
    folder = run({"type": "run.started"}, STARTED)
    asked = []
    monkeypatch.setattr(status, "of_attempts", lambda state: asked.append(state) or left)
    state = "orphaned" if left else "interrupted"
    assert status.run_state(workspace, RunRecord(folder)) == state
    assert told(workspace)["steps"][0]["state"] == state
    assert status.going_on(workspace) is bool(left)
    assert set(asked) == {workspace.state}
    assert MARK


def test_a_checkpoint_is_what_holds(workspace, run):
    run({"type": "step.satisfied", "step": "one"}, FINISHED)
    checkpoint(workspace, "one")
    one = told(workspace)["steps"][0]
    assert one == {"id": "one", "uses": "command", **NONE, "state": "satisfied", "since": TIME,
                   "seconds": 2.5}  # fmt: skip


def test_what_failed_since_goes_over_the_checkpoint(workspace, run):
    checkpoint(workspace, "one", outputs={"endpoint": "http://h"})
    run(STARTED, FAILED, FINISHED)
    answer = told(workspace)
    assert answer["steps"][0]["state"] == "failed"
    assert answer["steps"][0]["seconds"] == 2.5
    assert answer["endpoint"] is None, "it is told of what holds"


@pytest.mark.parametrize(
    ("process", "state"),
    [
        (lambda: Identity.of(os.getpid()).dump(), "satisfied"),
        (lambda: Identity(os.getpid(), 1, "another boot").dump(), "stopped"),
        (lambda: {"pid": "none"}, "satisfied"),
        (lambda: None, "satisfied"),
    ],
)
def test_a_service_that_died_is_told_of(workspace, process, state):
    outputs = {"endpoint": "http://h", "process": process()}
    checkpoint(workspace, "two", outputs=outputs)
    answer = told(workspace)
    assert answer["steps"][1]["state"] == state
    assert answer["steps"][1]["endpoint"] == "http://h"
    assert answer["endpoint"] == ("http://h" if state == "satisfied" else None)


def test_of_two_endpoints_the_last_is_told(workspace):
    checkpoint(workspace, "one", outputs={"endpoint": "http://a"})
    checkpoint(workspace, "two", outputs={"endpoint": "http://b"})
    assert told(workspace)["endpoint"] == "http://b"


def test_many_steps_are_read_from_the_index(workspace, monkeypatch):
    asked = []
    monkeypatch.setattr(workspace, "read_index", asked.append)
    told(workspace)
    assert asked == [2]
