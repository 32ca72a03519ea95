"""Only one run at a time writes, whatever is done to its descriptors and to the lock's file."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from runbook.state.workspace import Workspace
from tests.runbook.helpers import write_book

pytestmark = pytest.mark.harness

CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", ""]


@pytest.fixture
def waiting(cli):
    """A book whose step waits for the file `go`."""
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "waits"}})
    return cli


def begin(cli, closed=""):
    command = f"exec {shlex.join(cli.argv('run'))} {closed}"
    process = subprocess.Popen(
        ["bash", "-c", command],
        env=cli.environment,
        cwd=cli.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    cli.wait_for("attempt.started", "one")
    return process


def end(cli, process):
    (cli.workspace / "go").touch()
    assert process.wait(60) == 0
    assert (cli.workspace / "diary").read_text().splitlines() == ["one began", "one ended"]
    assert not Workspace(cli.workspace).locked()


@pytest.mark.parametrize("closed", CLOSED)
def test_no_standard_stream_becomes_the_lock(waiting, closed):
    process = begin(waiting, closed)
    for fd in range(3):
        name = os.readlink(f"/proc/{process.pid}/fd/{fd}")
        assert not name.startswith(str(waiting.workspace)), (fd, name)
    assert waiting.json("run", code=6)["error"]["code"] == "locked"
    end(waiting, process)


def test_a_lock_taken_with_all_descriptors_free_is_none_of_the_standard_ones(tmp_path):
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from runbook.state.workspace import Workspace\n"
        "os.closerange(0, 3)\n"
        "os._exit(0 if Workspace(Path(sys.argv[1])).acquire() > 2 else 1)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "w")], check=True)


def removed(file):
    file.unlink()


def emptied(file):
    file.write_text("")


def foreign(file):
    file.write_text('{"pid": "none of ours"}')


def another(file):
    file.unlink()
    file.write_text("{}")


def folder(file):
    file.unlink()
    file.mkdir()


def whole_state(file):
    shutil.rmtree(file.parent / "checkpoints")
    file.unlink()


@pytest.mark.parametrize("damage", [removed, emptied, foreign, another, folder, whole_state])
def test_a_run_holds_its_lock_whatever_becomes_of_the_file(waiting, damage):
    process = begin(waiting)
    damage(Workspace(waiting.workspace).lock_file)
    refused = waiting.json("run", code=6)["error"]
    assert refused["code"] == "locked"
    assert str(process.pid) in refused["cause"]
    assert waiting.json("status")["run"]["state"] == "running"
    assert waiting.json("wait", "--timeout", "0", code=7)
    assert waiting.json("cancel")["cancelled"]
    assert process.wait(60) == 8
    (waiting.workspace / "go").touch()
    assert waiting.json("run")["ok"]


def test_an_orphan_holds_the_lock_whose_file_is_gone(waiting):
    process = begin(waiting)
    process.kill()
    process.wait()
    Workspace(waiting.workspace).lock_file.unlink()
    assert waiting.json("run", code=6)["error"]["code"] == "orphaned"
    assert waiting.json("status")["run"]["state"] == "orphaned"
    assert waiting.json("cancel")["cancelled"]
    assert not Workspace(waiting.workspace).locked()


BEGINS = """
import os, signal, sys
from pathlib import Path
from runbook.state.lock import Lock
from runbook.state.workspace import Workspace

def claim(lock, run):
    print("taken", flush=True)
    signal.pause()

Lock.claim = claim
Workspace(Path(sys.argv[1])).acquire()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_who_has_the_lock_and_has_not_said_so_yet_is_a_run_that_begins(waiting, stopped):
    """The record is still that of the run before, which has ended."""
    waiting.workspace.mkdir(parents=True)
    (waiting.workspace / "go").touch()
    waiting.json("run")
    argv = [sys.executable, "-P", "-c", BEGINS, str(waiting.workspace)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "taken\n"
        if stopped:
            process.send_signal(signal.SIGSTOP)
        refused = waiting.json("run", code=6)["error"]
        assert (refused["code"], "just beginning" in refused["message"]) == ("locked", True)
        assert str(process.pid) in refused["cause"]
        answer = waiting.json("cancel")
        assert (answer["cancelled"], answer["run"]) == (True, None)
        assert process.wait(60) < 0
    finally:
        process.kill()
        process.communicate()
    assert waiting.json("run")["ok"]


def test_where_folders_cannot_be_locked_the_file_is(tmp_path, monkeypatch):
    import fcntl

    lock = fcntl.flock

    def refuse_folders(descriptor, operation):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") and operation & fcntl.LOCK_EX:
            raise OSError(9, "Bad file descriptor")  # as NFS does
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse_folders)
    workspace = Workspace(tmp_path)
    held = workspace.acquire()
    assert os.readlink(f"/proc/self/fd/{held}") == str(workspace.lock_file)
    assert workspace.locked()
    os.close(held)
    assert not workspace.locked()
