"""The lock of a workspace, in one process: `flock` is of the open file, not of who opened it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time

import pytest

from runbook.errors import RunbookError
from runbook.process import Identity
from runbook.state import lock as locking
from runbook.state.lock import END, Lock
from tests.runbook.helpers import left_behind


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "LOCK_PATIENCE", 0.0)
    root = tmp_path / "w"
    root.mkdir()
    made = Lock(root, tmp_path / "lock", lambda: "the last run")
    assert not made.locked() and made.supervisor() == (None, "")
    return made


def me():
    return Identity.of(os.getpid())


def test_it_is_held_until_it_is_closed(lock):
    held = lock.acquire()
    assert os.get_inheritable(held) and held > 2
    assert os.readlink(f"/proc/self/fd/{held}") == str(lock.root)
    assert lock.locked()
    assert lock.supervisor() == (me(), "")
    with pytest.raises(RunbookError):
        lock.acquire()
    os.close(held)
    assert not lock.locked()
    assert lock.supervisor() == (me(), ""), "who held it last"
    os.close(lock.acquire())


def test_the_record_of_who_holds_it(lock):
    held = lock.acquire()
    lock.file.write_text("x" * 1000)
    lock.claim("run-1")
    data = lock.file.read_bytes()
    assert len(data) == 256
    assert json.loads(data) == {"run": "run-1", **me().dump()}
    assert lock.supervisor() == (me(), "run-1")
    assert stat.S_IMODE(lock.file.stat().st_mode) == 0o644 & ~os.umask(os.umask(0))
    os.close(held)


@pytest.mark.parametrize("run", [None, 1, ["r"]])
def test_a_run_that_is_no_text_is_none(lock, run):
    lock.file.write_text(json.dumps({**me().dump(), "run": run}))
    assert lock.supervisor() == (me(), "")


def said(error):
    remedies = [(one.verb, one.text) for one in error.remedy]
    return error.code, error.exit_code, error.retryable, remedies, [r.verb for r in error.next]


def test_who_comes_second_is_told_who_was_first(lock):
    held = lock.acquire()
    for run, name in (("", "it is just beginning"), ("run-1", "run-1")):
        lock.claim(run)
        with pytest.raises(RunbookError) as refused:
            lock.acquire()
        error = refused.value
        assert str(error) == f"another run of this workspace is going on: {name}"
        assert error.cause == f"process {os.getpid()} holds the lock"
        assert said(error) == (
            "locked", 6, True,
            [("wait", "{command} to wait for it"), ("cancel", "{command} to end it")],
            ["wait", "status", "cancel"],
        )  # fmt: skip
    os.close(held)


def test_a_worker_that_holds_it_is_told_of(lock):
    held = left_behind(lock.acquire)
    assert lock.locked()
    with pytest.raises(RunbookError) as refused:
        lock.acquire()
    error = refused.value
    assert str(error) == "a step of an earlier run is still working though its supervisor is gone"
    assert error.cause == "its worker process holds the lock"
    assert said(error) == (
        "orphaned", 6, True, [("wait", "{command} to let it finish"), (END.verb, END.text)],
        ["wait", "cancel"],
    )  # fmt: skip
    os.close(held)


def test_who_took_it_and_has_not_said_so_is_a_run_that_begins(lock):
    held = lock.acquire()
    lock.file.write_text(json.dumps({**me().dump(), "boot_id": "before", "run": "r"}))
    assert lock.supervisor() == (me(), "")
    os.close(held)
    assert lock.supervisor()[1] == "r", "who held it last"


def test_who_holds_it_is_known_without_the_record(lock):
    held = lock.acquire()
    lock.file.unlink()
    assert lock.supervisor() == (me(), "the last run")
    lock.file.write_text("[]")
    assert lock.supervisor() == (me(), "the last run")
    os.close(held)
    assert lock.supervisor() == (None, "")


def test_who_holds_it_is_known_while_it_closes_other_descriptors(lock, monkeypatch):
    held = lock.acquire()
    lock.file.unlink()
    real, lost = os.stat, []

    def gone(path, *args, **kwargs):
        if not lost and str(path).startswith("/proc/"):
            lost.append(path)
            raise FileNotFoundError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", gone)
    assert lock.supervisor() == (me(), "the last run")
    assert lost
    os.close(held)


def test_a_probe_does_not_keep_a_run_waiting_for_long(lock, monkeypatch):
    monkeypatch.setattr(locking, "LOCK_PATIENCE", 60.0)
    probe = os.open(lock.root, os.O_RDONLY)
    fcntl.flock(probe, fcntl.LOCK_SH)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            os.close(probe)

    monkeypatch.setattr(time, "sleep", sleep)
    os.close(lock.acquire())
    assert slept == [0.01, 0.01]


def test_patience_ends(lock, monkeypatch):
    monkeypatch.setattr(locking, "LOCK_PATIENCE", 5.0)
    held = lock.acquire()
    clock = iter([100.0, 104.9, 105.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(RunbookError):
        lock.acquire()
    assert not list(clock)
    os.close(held)


def test_a_claim_that_is_refused_gives_the_lock_back(lock, monkeypatch):
    def refuse(run):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(lock, "claim", refuse)
    with pytest.raises(OSError, match="no space"):
        lock.acquire()
    assert not lock.locked()


class NoFolders:
    """A file system on which folders cannot be locked."""

    def __init__(self, monkeypatch, files=True):
        lock = fcntl.flock

        def flock(descriptor, operation):
            folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
            if operation & fcntl.LOCK_EX and (folder or not files):
                raise OSError(errno.EBADF, "Bad file descriptor")
            lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", flock)


def test_where_folders_cannot_be_locked_the_file_is(lock, monkeypatch):
    NoFolders(monkeypatch)
    before = len(os.listdir("/proc/self/fd"))
    held = lock.acquire()
    assert os.readlink(f"/proc/self/fd/{held}") == str(lock.file)
    assert lock.locked()
    with pytest.raises(RunbookError):
        lock.acquire()
    os.close(held)
    assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"


def test_where_nothing_can_be_locked_that_is_said(lock, monkeypatch):
    NoFolders(monkeypatch, files=False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        lock.acquire()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_is_another_now_is_tried_again(lock, monkeypatch):
    same = locking._same
    answers = iter([False])
    monkeypatch.setattr(locking, "_same", lambda *given: next(answers, same(*given)))
    monkeypatch.setattr(locking, "LOCK_PATIENCE", 60.0)
    before = len(os.listdir("/proc/self/fd"))
    os.close(lock.acquire())
    assert not list(answers)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_path_names(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    other.touch()
    descriptor = os.open(one, os.O_RDONLY)
    assert locking._same(descriptor, one)
    assert not locking._same(descriptor, other)
    assert not locking._same(descriptor, tmp_path / "none")
    one.rename(tmp_path / "moved")
    assert locking._same(descriptor, tmp_path / "moved")
    os.close(descriptor)


@pytest.mark.parametrize("odd", ["folder", "link", "pipe", "loop"])
def test_what_stands_in_the_place_of_the_file_is_set_aside(lock, odd):
    if odd == "folder":
        lock.file.mkdir()
    elif odd == "pipe":
        os.mkfifo(lock.file)
    else:
        lock.file.symlink_to(lock.file.name if odd == "loop" else "nowhere")
    before = len(os.listdir("/proc/self/fd"))
    lock.claim("r")
    assert lock.file.is_file() and not lock.file.is_symlink()
    assert lock.supervisor()[1] == "r"
    assert stat.S_IMODE(lock.file.stat().st_mode) == 0o644 & ~os.umask(os.umask(0))
    assert os.path.lexists(lock.file.with_name("lock.damaged.1"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_cannot_be_made_is_an_error(lock, tmp_path):
    lost = Lock(lock.root, tmp_path / "none" / "lock", lambda: "")
    with pytest.raises(FileNotFoundError):
        lost.claim("r")


def test_what_cannot_be_opened_or_locked_is_not_locked(lock, monkeypatch, tmp_path):
    assert not locking._is_locked(tmp_path / "none")
    before = len(os.listdir("/proc/self/fd"))
    held = lock.acquire()
    assert locking._is_locked(lock.root) and not locking._is_locked(lock.file)

    def refuse(descriptor, operation):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not locking._is_locked(lock.root)
    os.close(held)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 1, 2), ()])
def test_it_is_no_standard_stream_whichever_are_closed(lock, closed):
    """A child is given those anew, and would let go of the lock."""
    os.close(lock._open(lock.root))  # here as well: what only a child calls, no mutant is tried on
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for descriptor in closed:
                os.close(descriptor)
            held = lock._open(lock.root)
            same = os.path.samestat(os.fstat(held), os.stat(lock.root))
            free = all(not os.path.exists(f"/proc/self/fd/{one}") for one in closed)
            code = 0 if held > 2 and same and free and not os.get_inheritable(held) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_workspace_is_a_folder(lock):
    lock.root.rmdir()
    lock.root.touch()
    with pytest.raises(NotADirectoryError):
        lock.acquire()


def test_a_pipe_in_the_place_of_the_file_is_asked_without_waiting(lock):
    os.mkfifo(lock.file)
    assert not lock.locked()


def test_a_probe_takes_no_lock_from_another(lock):
    probe = os.open(lock.root, os.O_RDONLY)
    fcntl.flock(probe, fcntl.LOCK_SH)
    assert not lock.locked(), "another probe is no run"
    os.close(probe)


LOCKS = """1: POSIX  ADVISORY  WRITE {pid} 00:1a:{inode} 0 EOF
2: FLOCK  ADVISORY  READ  {pid} 00:1a:{inode} 0 EOF
2: -> FLOCK  ADVISORY  WRITE {pid} 00:1a:{inode} 0 EOF
3: FLOCK  ADVISORY  WRITE {pid} 00:1a:1 0 EOF
4: FLOCK  ADVISORY  WRITE {other} 00:1a:{inode} 0 EOF
5: FLOCK  ADVISORY  WRITE {pid} 00:1a:{inode} 0 EOF
"""


@pytest.mark.parametrize("place", ["root", "file"])
def test_the_kernel_s_list_of_locks(lock, monkeypatch, place):
    """Of the processes that it names, one that has the place open: another has a pid of one."""
    path = getattr(lock, place)
    lock.file.touch()
    opened = os.open(path, os.O_RDONLY)
    given = {"inode": path.stat().st_ino, "pid": os.getpid(), "other": os.getppid()}
    text = LOCKS.format(**given)
    asked = []
    monkeypatch.setattr(
        locking, "Path",
        lambda path: asked.append(path) or type("P", (), {"read_text": lambda self: text})(),
    )  # fmt: skip
    assert lock._taker() == me()
    assert asked == ["/proc/locks"]
    os.close(opened)
    assert lock._taker() is None
    opened = os.open(path, os.O_RDONLY)
    text = LOCKS.split("5:")[0].format(**given)
    assert lock._taker() is None
    text = LOCKS.format(**given)
    lock.root.rmdir()
    lock.file.unlink()
    assert lock._taker() is None
    os.close(opened)
