"""Where the details of an internal error go."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

import pytest

import runbook
from runbook.redact import Redactor
from runbook.state import crash


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def raised(message: str) -> Exception:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


def test_a_report_says_what_ran_where_and_what_was_raised(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["runbook", "run", "b.yaml"])
    path = crash.write(raised("so \ud800"), tmp_path)
    assert path.parent == tmp_path
    assert path.name.startswith("crash-") and path.name.endswith(".txt")
    first, second, *_, last = path.read_text().splitlines()
    versions = f"runbook {runbook.__version__}, Python {platform.python_version()}"
    assert first == f"{versions}, ['run', 'b.yaml']"
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: so \\ud800"


def test_a_report_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hf_abcdefghij")
    monkeypatch.setattr("sys.argv", ["runbook", "--set", "key=hf_abcdefghij"])
    Redactor(["MY_TOKEN"])
    report = crash.write(raised("hf_abcdefghij"), tmp_path).read_text()
    assert "hf_abcdefghij" not in report and report.count("[MY_TOKEN]") >= 2


@pytest.mark.parametrize("state", [None, "none", "a file"])
def test_without_a_state_folder_it_goes_to_the_temporary_one(tmp_path, temporary, state):
    (tmp_path / "a file").touch()
    path = crash.write(raised("so"), tmp_path / state if state else None)
    assert path.parent == temporary and "ValueError: so" in path.read_text()


def test_a_folder_that_refuses_gives_way_to_the_next_and_the_last_to_nothing(
    tmp_path, temporary, monkeypatch
):
    real = tempfile.mkstemp
    full = {str(tmp_path)}

    def mkstemp(prefix, suffix, dir):
        if str(dir or temporary) in full:
            raise OSError(28, "No space left on device")
        return real(prefix=prefix, suffix=suffix, dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    assert crash.write(raised("so"), tmp_path).parent == temporary
    full.add(str(temporary))
    assert crash.write(raised("so"), tmp_path) == Path(os.devnull)
