"""What happened in a workspace, run by run, from journals."""

from __future__ import annotations

import json

import pytest

from runbook.state import journal, story


def at(second):
    return f"2026-01-01T00:00:{second:06.3f}Z"


def write(run, *events):
    run.mkdir(exist_ok=True)
    lines = [{"seq": n, **event} for n, event in enumerate(events, 1)]
    (run / journal.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


STARTED = {"type": "run.started", "time": at(1), "package": "0.1"}
BEGAN = {"type": "attempt.started", "time": at(2), "step": "a", "attempt": 1, "log": ""}
ATTEMPT = {"step": "a", "attempt": 1, "start": 1.0, "end": None, "outcome": "running",
           "error": None, "rates": {}}  # fmt: skip
ERROR = {"code": "c", "message": "m"}


def progress(second, done, unit="bytes", **more):
    return {"type": "attempt.progress", "time": at(second), "step": "a", "attempt": 1,
            "done": done, "total": 9, "unit": unit, "message": "", **more}  # fmt: skip


def test_a_run_without_a_journal(tmp_path):
    assert story.run(tmp_path / "000001-x") == {
        "id": "000001-x", "exit_code": None, "attempts": [], "skipped": [],
    }  # fmt: skip


def test_a_run(tmp_path):
    told = story.run(
        write(
            tmp_path,
            STARTED,
            {"type": "step.satisfied", "time": at(1.5), "step": "z"},
            BEGAN,
            {**BEGAN, "step": "b", "time": at(3)},
            {"type": "attempt.failed", "time": at(4), "step": "a", "attempt": 1, "error": ERROR},
            {**BEGAN, "attempt": 2, "time": at(5)},
            {"type": "attempt.succeeded", "time": at(6.5), "step": "a", "attempt": 2},
            {"type": "run.finished", "time": at(9), "exit_code": 1},
        )
    )
    assert told == {
        "id": tmp_path.name,
        "started": at(1),
        "package": "0.1",
        "exit_code": 1,
        "seconds": 8.0,
        "skipped": ["z"],
        "attempts": [
            {**ATTEMPT, "end": 3.0, "outcome": "failed", "error": ERROR},
            {**ATTEMPT, "step": "b", "start": 2.0},
            {**ATTEMPT, "attempt": 2, "start": 4.0, "end": 5.5, "outcome": "succeeded"},
        ],
    }


def test_a_run_whose_beginning_is_lost_is_told_from_its_first_event(tmp_path):
    told = story.run(write(tmp_path, BEGAN, progress(5, 2)))
    assert told["seconds"] == 3.0 and "started" not in told
    assert [one["start"] for one in told["attempts"]] == [0.0]


def test_a_clock_that_is_set_back_makes_no_run_shorter(tmp_path):
    assert (
        story.run(write(tmp_path, STARTED, {**BEGAN, "time": at(8)}, progress(3, 2)))["seconds"]
        == 7.0
    )


def test_a_run_of_an_older_version_names_no_package(tmp_path):
    assert story.run(write(tmp_path, {"type": "run.started", "time": at(1)}))["package"] == ""


@pytest.mark.parametrize(
    "event",
    [
        {"type": "attempt.progress", "step": "b", "attempt": 1, "done": 1, "total": 1,
         "unit": "x", "message": ""},
        {"type": "attempt.succeeded", "step": "a", "attempt": 2},
        {"type": "attempt.succeeded", "step": "a"},
        {"type": "of a later version"},
        {"type": "undo.finished", "step": "a", "attempt": 1},
    ],
)  # fmt: skip
def test_what_belongs_to_no_attempt_is_passed_over(tmp_path, event):
    told = story.run(write(tmp_path, STARTED, BEGAN, {**event, "time": at(7)}, progress(3, 2)))
    assert [one["outcome"] for one in told["attempts"]] == ["running"]
    assert told["attempts"][0]["rates"] == {
        "bytes": {"since": 2.0, "from": 2, "until": 2.0, "done": 2, "total": 9}
    }


def test_a_run_that_did_not_end_lasts_as_long_as_its_journal(tmp_path):
    told = story.run(write(tmp_path, STARTED, BEGAN, progress(8, 2)))
    assert told["seconds"] == 7.0
    assert story.run(write(tmp_path, STARTED))["seconds"] == 0.0


def test_progress_is_told_by_unit_from_the_first_to_the_last(tmp_path):
    events = [progress(3, 2), progress(4, 1, "files"), progress(5, 6, total=8), progress(6, 1, "")]
    told = story.run(write(tmp_path, STARTED, BEGAN, *events))
    assert told["attempts"][0]["rates"] == {
        "bytes": {"since": 2.0, "from": 2, "until": 4.0, "done": 6, "total": 8},
        "files": {"since": 3.0, "from": 1, "until": 3.0, "done": 1, "total": 9},
    }


def test_the_newest_runs_are_told_of(tmp_path):
    folders = [write(tmp_path / f"{n}", STARTED) for n in range(25)]
    assert [told["id"] for told in story.runs(folders)] == [f"{n}" for n in range(20)]
    assert [told["id"] for told in story.runs(folders[:2])] == ["0", "1"]
