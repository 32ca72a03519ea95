"""The lock of a workspace: who holds it may write."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runbook.errors import LOCKED, RunbookError
from runbook.files import encode, read_json, set_aside
from runbook.process import Identity, open_files
from runbook.remedy import Remedy

# A probe of the lock holds it for microseconds; a run that meets one tries again for this long.
LOCK_PATIENCE = 0.3
RECORD_SIZE = 256
"""Bytes of the record of who holds the lock: one write of one length is never read half."""
END = Remedy("cancel", text="{command} to end it")


class Lock:
    """What is locked is the folder of the workspace, which cannot be removed unnoticed; the file
    `lock` says who holds it. Where folders cannot be locked (NFS) it is that file."""

    def __init__(self, root: Path, file: Path, last_run: Callable[[], str]) -> None:
        self.root = root
        self.file = file
        self._last_run = last_run

    def acquire(self) -> int:
        """Take the lock; the descriptor is inheritable, so that a worker which outlives its
        supervisor still holds it. Raises RunbookError with exit code 6 if another run has it."""
        deadline = time.monotonic() + LOCK_PATIENCE
        while (descriptor := self._try()) is None:
            if time.monotonic() >= deadline:
                raise self._held()
            time.sleep(0.01)
        os.set_inheritable(descriptor, True)
        try:
            self.claim("")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _try(self) -> int | None:
        """The descriptor of the lock if it was free."""
        for path in (self.root, self.file):
            descriptor = self._open(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(descriptor, path):
                    return descriptor
            except BlockingIOError:
                pass
            except OSError:
                if path == self.root:  # folders cannot be locked here
                    os.close(descriptor)
                    continue
                os.close(descriptor)
                raise
            os.close(descriptor)
            return None
        return None

    def _open(self, path: Path) -> int:
        """A descriptor that is none of the three standard ones, which children are given anew."""
        if path == self.root:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        else:
            descriptor = _open_record(path)
        if descriptor > 2:
            return descriptor
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(descriptor)
        return high

    def claim(self, run: str) -> None:
        """Write into the lock's file who holds it, and for which run once that has begun."""
        me = Identity.of(os.getpid())
        assert me is not None
        record = _open_record(self.file)
        try:
            os.pwrite(record, encode({"run": run, **me.dump()}).ljust(RECORD_SIZE), 0)
            os.ftruncate(record, RECORD_SIZE)
        finally:
            os.close(record)

    def _held(self) -> RunbookError:
        supervisor, run = self.supervisor()
        if supervisor is not None and supervisor.alive():
            return RunbookError(
                f"another run of this workspace is going on: {run or 'it is just beginning'}",
                code="locked",
                exit_code=LOCKED,
                cause=f"process {supervisor.pid} holds the lock",
                remedy=(Remedy("wait", text="{command} to wait for it"), END),
                retryable=True,
                next=(Remedy("wait"), Remedy("status"), Remedy("cancel")),
            )
        return RunbookError(
            "a step of an earlier run is still working though its supervisor is gone",
            code="orphaned",
            exit_code=LOCKED,
            cause="its worker process holds the lock",
            remedy=(Remedy("wait", text="{command} to let it finish"), END),
            retryable=True,
            next=(Remedy("wait"), Remedy("cancel")),
        )

    def locked(self) -> bool:
        """Whether a run, or a worker it left behind, holds the lock."""
        return _is_locked(self.root) or _is_locked(self.file)

    def supervisor(self) -> tuple[Identity | None, str]:
        """Who last held the lock, and for which run ("" if it has not begun, or is not known)."""
        record = read_json(self.file)
        identity = Identity.load(record)
        taker = None if identity is not None and identity.alive() else self._taker()
        if identity is None:
            return taker, self._last_run() if self.locked() else ""
        if taker is not None:  # it has not written that yet
            return taker, ""
        run = record.get("run")
        return identity, run if isinstance(run, str) else ""

    def _taker(self) -> Identity | None:
        """Who took the lock by the kernel's list (proc_locks(5)), for when our record is lost or
        that of somebody who has ended; None if that process has ended itself."""
        try:
            lines = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return None
        places = []
        for path in (self.root, self.file):
            with suppress(OSError):
                places.append(path.stat())
        for fields in map(str.split, lines):
            if fields[1:2] == ["FLOCK"] and fields[3] == "WRITE":
                pid, inode = int(fields[4]), int(fields[5].rpartition(":")[2])
                place = next((place for place in places if place.st_ino == inode), None)
                # The list goes on naming a process that has ended: another may have its pid.
                if place and any(os.path.samestat(place, f) for f in open_files(pid, os.stat)):
                    return Identity.of(pid)
        return None


def _open_record(path: Path) -> int:
    """The file of the lock, opened for writing. What is none and stands in its place is set
    aside."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o644)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError:
        if not os.path.lexists(path):
            raise
    set_aside(path)
    return os.open(path, flags, 0o644)


def _same(descriptor: int, path: Path) -> bool:
    """Whether a path still names what was opened."""
    try:
        named, opened = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
