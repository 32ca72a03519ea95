"""A disk that refuses, at every write of a run in turn: words and a code, never a defect, and the
next run goes on."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os

import pytest

from runbook import disk
from runbook.cli.main import invoke
from runbook.errors import EXIT_CODES, INTERNAL
from runbook.state.workspace import Workspace
from tests.runbook.helpers import write_book

pytestmark = pytest.mark.harness

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO)
CODES = {disk.MEANINGS[number][0] for number in REFUSALS} | {"workspace_not_writable"}
CALLS = ("fsync", "replace", "mkdir", "symlink", "pwrite", "ftruncate", "open")


class Disk:
    """Counts what would change the disk and refuses the call with the number `at`, and all that
    follow while `lasting`."""

    def __init__(self, patch, at: int, number: int, lasting: bool) -> None:
        self.at, self.number, self.lasting = at, number, lasting
        self.calls = 0
        for name in CALLS:
            patch.setattr(os, name, self.counting(getattr(os, name), name))
        patch.setattr(builtins, "open", self.opening(builtins.open))

    def count(self) -> None:
        self.calls += 1
        if self.calls == self.at or (self.lasting and self.calls > self.at):
            raise OSError(self.number, os.strerror(self.number))

    def counting(self, call, name):
        def counted(*arguments, **named):
            if name != "open" or arguments[1] & os.O_CREAT:
                self.count()
            return call(*arguments, **named)

        return counted

    def opening(self, call):
        disk = self

        class File(io.FileIO):
            def write(self, data):
                disk.count()
                return super().write(data)

        def opened(file, mode="r", *arguments, **named):
            if isinstance(file, int) or not set(mode) & set("awx"):
                return call(file, mode, *arguments, **named)
            disk.count()
            if named.get("buffering") == 0:
                return File(file, mode.replace("b", ""))
            return call(file, mode, *arguments, **named)

        return opened


def settle(monkeypatch, home):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RUNBOOK_WORKSPACE", str(home / "workspace"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))


def run_on(home, book, capfd, at, number, lasting):
    """The code and the error of a run on such a disk, and the calls that it made."""
    with pytest.MonkeyPatch.context() as patch:
        refusing = Disk(patch, at, number, lasting)
        code = invoke(["run", str(book), "--json"])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert code in EXIT_CODES and code != INTERNAL, (at, number, out, err)
    documents = [d for d in map(json.loads, out.splitlines()) if "schema" in d]
    assert len(documents) == 1, (at, out, err)
    assert not Workspace(home / "workspace").locked()
    return code, documents[0].get("error"), refusing.calls


def adopted(home):
    """A book whose two steps are found done: no process is started."""
    home.mkdir()
    (home / "workspace").mkdir()
    for name in ("one", "two"):
        (home / "workspace" / name).write_text("done")
    return write_book(home, {"id": "one"}, {"id": "two"})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_every_write_of_a_run_refused_in_turn(tmp_path, monkeypatch, capfd, lasting):
    home = tmp_path / "count"
    book = adopted(home)
    settle(monkeypatch, home)
    code, _, calls = run_on(home, book, capfd, 0, errno.ENOSPC, False)
    assert code == 0 and calls > 20
    refused = 0
    for at in range(1, calls + 1):
        number = REFUSALS[at % len(REFUSALS)]
        home = tmp_path / f"{at}"
        book = adopted(home)
        settle(monkeypatch, home)
        code, error, _ = run_on(home, book, capfd, at, number, lasting)
        if code:  # the cache of documents and the like are not needed
            refused += 1
            assert error["code"] in CODES, error
            assert error["message"] and error["remedy"]
        assert invoke(["run", str(book), "--json"]) == 0
        capfd.readouterr()
        after = Workspace(home / "workspace")
        assert after.checkpoint("one") and after.checkpoint("two")
    assert refused > calls // 2


@pytest.mark.timeout(120)
def test_a_run_that_is_refused_ends_its_attempts(tmp_path, monkeypatch, capfd):
    for at in (30, 34, 38, 42):
        home = tmp_path / str(at)
        home.mkdir()
        book = write_book(home, {"id": "one", "with": {"seconds": 0.1}})
        settle(monkeypatch, home)
        run_on(home, book, capfd, at, errno.ENOSPC, True)
        assert invoke(["run", str(book), "--json"]) == 0
        capfd.readouterr()
