"""The state folder as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbook.errors import RunbookError
from runbook.redact import Redactor
from runbook.state.workspace import Workspace, default_workspace
from tests.runbook.state.test_state import record

NOTHING = Redactor([])


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "a" / "w")


def test_its_folders(workspace):
    assert workspace.state == workspace.root / ".runbook"
    assert workspace.lock_file == workspace.state / "lock"
    assert workspace.runs == workspace.state / "runs"
    assert workspace.checkpoints == workspace.state / "checkpoints"
    workspace.create()
    workspace.create()
    assert sorted(path.name for path in workspace.state.iterdir()) == ["checkpoints", "runs"]


@pytest.mark.parametrize("before", [0o700, 0o755, 0o777])
def test_nobody_else_looks_into_the_state_folder(workspace, before):
    """It holds what programs have printed; that of an earlier version is closed too."""
    workspace.state.mkdir(parents=True)
    workspace.state.chmod(before)
    workspace.create()
    assert workspace.state.stat().st_mode & 0o777 == 0o700


def test_the_state_folder_of_another_user_is_left_as_it_is(workspace, monkeypatch):
    workspace.state.mkdir(parents=True)
    workspace.state.chmod(0o755)
    monkeypatch.setattr("os.geteuid", lambda: -1)
    workspace.create()
    assert workspace.state.stat().st_mode & 0o777 == 0o755


def test_one_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunbookError) as refused:
        Workspace(tmp_path / "file" / "w").create()
    error = refused.value
    assert str(error) == f"cannot create the workspace {tmp_path / 'file' / 'w'}"
    assert (error.code, error.exit_code) == ("workspace_not_writable", 3)
    assert "Not a directory" in error.cause
    assert error.remedy == "choose another folder with --workspace or RUNBOOK_WORKSPACE"


def test_what_is_recorded_of_steps(workspace):
    assert workspace.recorded() == []
    workspace.create()
    origin = {"uses": "command", "folder": "/", "inputs": {}}
    workspace.write_checkpoint("b", record(), NOTHING)
    workspace.begun.write("c", "r/c.1", "f", origin)
    workspace.begun.write("a", "r/a.1", "f", origin)
    assert workspace.recorded() == ["a", "b", "c"]
    workspace.write_checkpoint("c", record(), NOTHING)
    assert workspace.begun.steps() == {"a"}, "it was verified"
    assert workspace.checkpoint("c")["step"] == "c"
    workspace.remove_checkpoint("c")
    workspace.begun.write("b", "r/b.2", "f", origin)
    workspace.remove_checkpoint("b")
    assert workspace.recorded() == ["a"]
    assert workspace.checkpoint("b") is None


def test_the_lock_makes_the_folders(workspace):
    import os

    lock = workspace.acquire()
    assert workspace.runs.is_dir() and workspace.locked()
    workspace.claim(lock, "the run")
    assert workspace.supervisor()[1] == "the run"
    os.close(lock)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RUNBOOK_WORKSPACE": "w"}, "/here/w"),
        ({"RUNBOOK_WORKSPACE": "/w", "XDG_DATA_HOME": "/x"}, "/w"),
        ({"XDG_DATA_HOME": "x"}, "/here/x/runbook/book"),
        ({"HOME": "/home/me"}, "/home/me/.local/share/runbook/book"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": ""}, "/home/me/.local/share/runbook/book"),
    ],
)
def test_where_a_workspace_is(monkeypatch, environment, expected):
    for name in ("RUNBOOK_WORKSPACE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "cwd", classmethod(lambda cls: cls("/here")))
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    assert default_workspace("book") == Path(expected)
