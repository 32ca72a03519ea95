"""Lock, checkpoints and journal on disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runbook.errors import RunbookError
from runbook.files import read_json, write_atomic
from runbook.redact import Redactor
from runbook.state import journal, logs
from runbook.state.checkpoints import MANY_STEPS
from runbook.state.history import RunRecord, last_attempt
from runbook.state.journal import Journal
from runbook.state.workspace import Workspace, default_workspace

NOTHING = Redactor([])
GMTIME = time.gmtime
TIME = "2026-01-02T03:04:05.678Z"


def record(**fields):
    """What the executor records of a success."""
    whole = {"time": TIME, "run": "r", "attempt": 1, "seconds": 0.5, "package": "1"}
    whole |= {"fingerprint": {"with": {}}, "inputs": {}, "outputs": {}, "outputs_digest": "d"}
    whole |= {"uses": "command", "folder": "/"}
    return {**whole, **fields}


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "w")
    made.create()
    return made


def test_the_lock_excludes_and_names_its_holder(workspace):
    lock = workspace.acquire()
    workspace.claim(lock, "run-1")
    assert workspace.locked()
    script = (
        "import sys; from pathlib import Path; from runbook.state.workspace import Workspace\n"
        "from runbook.errors import RunbookError\n"
        "try: Workspace(Path(sys.argv[1])).acquire()\n"
        "except RunbookError as e: print(e.code, e.exit_code, e.message)\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(workspace.root)], capture_output=True, text=True
    )
    assert other.stdout.startswith("locked 6 ")
    assert "run-1" in other.stdout
    os.close(lock)
    assert not workspace.locked()


def test_the_lock_of_an_earlier_boot_is_nobodys(workspace):
    lock = workspace.acquire()
    os.close(lock)
    written = read_json(workspace.lock_file)
    workspace.lock_file.write_text(json.dumps({**written, "boot_id": "before"}))
    supervisor, _ = workspace.supervisor()
    assert supervisor is not None
    assert not supervisor.alive()
    os.close(workspace.acquire())


def test_a_checkpoint_of_another_schema_is_none(workspace):
    workspace.write_checkpoint("a", record(), NOTHING)
    assert workspace.checkpoint("a")["outputs"] == {}
    path = workspace.checkpoints / "a.json"
    path.write_text(path.read_text().replace("runbook/1", "runbook/9"))
    assert workspace.checkpoint("a") is None
    assert workspace.checkpoint("never") is None


def test_the_index_is_as_good_as_the_files_and_yields_to_them(workspace):
    names = [f"s{n}" for n in range(MANY_STEPS)]
    for name in names:
        workspace.write_checkpoint(name, record(outputs={"n": name}), NOTHING)
    workspace.write_index(names)
    again = Workspace(workspace.root)
    again.read_index(len(names))
    for path in workspace.checkpoints.iterdir():
        os.rename(path, path.with_suffix(".away"))
        os.rename(path.with_suffix(".away"), path)
    assert again.checkpoint("s7")["outputs"] == {"n": "s7"}
    workspace.write_checkpoint("s7", record(outputs={"n": "new"}), NOTHING)
    later = Workspace(workspace.root)
    later.read_index(len(names))
    assert later.checkpoint("s7")["outputs"] == {"n": "new"}
    workspace.remove_checkpoint("s8")
    later = Workspace(workspace.root)
    later.read_index(len(names))
    assert later.checkpoint("s8") is None


def test_the_index_gives_back_every_record_as_it_was_written(workspace):
    """What records share, or repeat, is kept once and comes back in each of them."""
    names = [f"s{n}" for n in range(MANY_STEPS)]
    for n, name in enumerate(names):
        one = record(attempt=n % 2, inputs={"n": n % 3}, fingerprint={"with": {"n": n % 2}})
        workspace.write_checkpoint(name, one | ({"extra": 1} if n % 5 else {}), NOTHING)
    workspace.write_index(names)
    again = Workspace(workspace.root)
    again.read_index(len(names))
    whole = {name: workspace.checkpoint(name) for name in names}
    for path in workspace.checkpoints.iterdir():
        os.truncate(path, 0)
    assert {name: again.checkpoint(name) for name in names} == whole


def test_the_journal_counts_from_one_and_begins_with_what_waited(tmp_path):
    heard = []
    events = Journal(NOTHING, heard.append)
    events.append("run.started", book="b")
    assert not list(tmp_path.iterdir())
    events.open(tmp_path)
    events.append("attempt.started", step="a", attempt=1, log="l", process=None)
    events.close()
    found = list(journal.read(tmp_path))
    assert found == heard
    assert [event["seq"] for event in found] == [1, 2]
    assert list(journal.read(tmp_path, since=1)) == found[1:]


def test_a_torn_line_is_left_out(tmp_path):
    file = tmp_path / journal.FILE
    file.write_text(
        json.dumps({"seq": 1, "time": TIME, "type": "run.started"}) + '\n{"seq": 2, "ti'
    )
    assert [event["seq"] for event in journal.read(tmp_path)] == [1]
    assert RunRecord(tmp_path).last_seq == 1


def test_a_run_is_folded_to_what_is_last_known_of_each_step(tmp_path):
    events = Journal(NOTHING, lambda event: None)
    events.open(tmp_path)
    error = {"code": "c", "message": "m"}
    old = {"state": "interrupted", "since": TIME, "error": None, "log": ""}
    events.append("run.started")
    events.append("step.satisfied", step="a", decision="skip", reasons=[])
    events.append("run.carried", steps={"a": old, "z": old})
    events.append("attempt.started", step="b", attempt=1, log="l", process=None)
    for done in range(200):
        fields = {"done": done, "total": 200, "unit": "", "message": ""}
        events.append("attempt.progress", step="b", attempt=1, **fields)
    events.append("attempt.started", step="c", attempt=1, log="l", process=None)
    events.append("attempt.failed", step="c", attempt=1, seconds=1.0, error=error)
    events.close()
    found = RunRecord(tmp_path)
    states = {name: step.state for name, step in found.steps.items()}
    assert states == {"a": "satisfied", "z": "interrupted", "b": "running", "c": "failed"}
    assert found.steps["b"].progress["done"] == 199
    assert set(found.unfinished()) == {"z", "b", "c"}
    assert last_attempt(found.steps["b"]) == "interrupted"
    assert last_attempt(found.steps["c"]) == "failed"
    assert last_attempt(found.steps["a"]) == last_attempt(None) == ""


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_where_workspaces_are(monkeypatch):
    monkeypatch.setenv("RUNBOOK_WORKSPACE", "/w")
    assert str(default_workspace("b")) == "/w"
    monkeypatch.delenv("RUNBOOK_WORKSPACE")
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert str(default_workspace("b")) == "/x/runbook/b"


def test_a_clock_set_back_does_not_change_the_order_of_runs(workspace, monkeypatch):
    """The latest run is the last that was begun, by `latest`, without it, and for logs."""
    made = []
    for moment in (2e9, 1e9, 1.5e9, 1e8):
        monkeypatch.setattr("time.gmtime", lambda moment=moment: GMTIME(moment))
        run = workspace.new_run()
        workspace.point_latest(run)
        (run / "one.1.log").write_text(run.name)
        os.utime(run / "one.1.log", (moment, moment))
        made.append(run)
    assert workspace.latest() == made[-1]
    assert workspace.runs_newest_first() == made[::-1]
    assert logs.find(workspace, "one", None).run == made[-1].name
    (workspace.state / "latest").unlink()
    assert workspace.latest() == made[-1]
    assert workspace.new_run() > made[-1]


@pytest.mark.parametrize("odd", ["link", "file", "pipe", "loop"])
def test_what_is_no_run_among_the_runs_is_passed_over(workspace, odd):
    run = workspace.new_run()
    place = workspace.runs / "000009-odd"
    if odd == "pipe":
        os.mkfifo(place)
    elif odd == "file":
        place.touch()
    else:
        place.symlink_to(place.name if odd == "loop" else "nowhere")
    assert workspace.runs_newest_first() == [run]


def test_a_name_that_is_not_utf8_is_recorded(tmp_path):
    """As runs of people whose folders have names in other encodings are."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    workspace = Workspace(Path(os.fsdecode(folder)))
    workspace.create()
    outputs = {"file": os.fsdecode(folder), "half": "\ud800", "whole": "é"}
    workspace.write_checkpoint("a", record(outputs=outputs), NOTHING)
    assert workspace.checkpoint("a")["outputs"] == outputs
    run = workspace.new_run()
    events = Journal(NOTHING, lambda event: None)
    events.open(run)
    events.append("run.started", source=outputs["file"], half="\ud800")
    events.close()
    (event,) = journal.read(run)
    assert event["source"] == outputs["file"]
    (run / journal.FILE).read_bytes().decode("utf-8")  # any reader's


def test_a_user_without_a_home_is_told_so(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    for name in ("RUNBOOK_WORKSPACE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunbookError) as refused:
        default_workspace("b")
    assert refused.value.code == "no_home" and refused.value.exit_code == 3
