"""A file on its way: its bytes, and the sidecar that says what of them can be trusted.

The sidecar holds the digest that the file shall have, the spans that were on disk (fdatasync)
before it was written, the running digest, and the validators of the servers that the bytes came
from. It is renamed into place, so whatever happens it tells the truth about an earlier moment.
A small file has none: it is fetched anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runbook.files import write_json
from runbook.steps.common.hub import digests
from runbook.steps.common.hub.listing import Entry
from runbook.steps.common.hub.parts import FORMAT, paths, sidecar
from runbook.steps.common.hub.spans import Spans

CATCH_UP = 8 << 20

Recorder = Callable[[Path], None]
"""Told of a whole, durable file just before it takes its name."""


class Part:
    """Written by several threads at once, each at its own positions."""

    def __init__(self, folder: Path, entry: Entry, hashed: bool) -> None:
        self.entry = entry
        self.target = folder / entry.path
        self.path, self.sidecar = paths(folder, entry.path)
        self.validators: dict[str, str] = {}
        self.spans = Spans()
        self.passes = 1
        """How many times the file was fetched from the start, this time included."""
        self.replaced = 0
        """Bytes that a later pass found different."""
        self._hasher = digests.hasher(entry) if hashed else None
        self._hash_lock = threading.Lock()
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._closed = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not self._resume():
                os.ftruncate(self._file, 0)
            os.ftruncate(self._file, entry.size)
        except OSError:
            os.close(self._file)
            raise

    def _resume(self) -> bool:
        data = sidecar(self.sidecar, self.entry)
        if data is None or os.fstat(self._file).st_size != self.entry.size:
            return False
        self.spans = Spans((start, stop) for start, stop in data["spans"])
        self.validators = dict(data["validators"])
        self.passes = data["passes"]
        if self._hasher is not None and data.get("state"):
            with suppress(ValueError):  # a state of another version: the digest starts again
                self._hasher = digests.restore(self.entry, data["hashed"], data["state"])
        return True

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at their place and take them into the digest when their turn has come.
        In a later pass only what differs is written."""
        if self.passes > 1 and os.pread(self._file, len(data), offset) == data:
            self._add(offset, offset + len(data))
        else:
            view = memoryview(data)
            position = offset
            while view:
                written = os.pwrite(self._file, view, position)
                view = view[written:]
                position += written
            self._add(offset, position)
            if self.passes > 1:
                with self._lock:
                    self.replaced += len(data)
        self._hash(offset, data)

    def _add(self, start: int, stop: int) -> None:
        with self._lock:
            self.spans.add(start, stop)

    def _hash(self, offset: int, data: bytes) -> None:
        # Bytes that come in order are hashed from memory. What another connection wrote ahead
        # is read back when the digest reaches it, while it is still in the page cache.
        hasher = self._hasher
        if hasher is None or not self._hash_lock.acquire(blocking=False):
            return
        try:
            if offset == hasher.position:
                hasher.update(data)
            self._catch_up(CATCH_UP)
        finally:
            self._hash_lock.release()

    def _catch_up(self, limit: int) -> None:
        assert self._hasher is not None
        with self._lock:
            end = self.spans.end_of(self._hasher.position)
        end = min(end, self._hasher.position + limit)
        while self._hasher.position < end:
            position = self._hasher.position
            data = os.pread(self._file, min(digests.BLOCK, end - position), position)
            if not data:
                raise OSError(f"{self.path} became shorter than {end} bytes")
            self._hasher.update(data)

    def sync(self) -> None:
        """Make what was written so far durable, then say so in the sidecar."""
        with self._sync_lock:
            with self._hash_lock, self._lock:
                if self._closed:
                    return
                state = None
                record = {
                    "format": FORMAT,
                    "digest": str(self.entry.digest),
                    "size": self.entry.size,
                    "passes": self.passes,
                    "spans": self.spans.dump(),
                    "validators": dict(self.validators),
                }
                if self._hasher is not None and (state := self._hasher.state()):
                    record |= {"hashed": self._hasher.position, "state": state}
            os.fdatasync(self._file)
            write_json(self.sidecar, record)

    def digest(self) -> str | None:
        """The digest of the whole file, which must be complete; None if it is not computed."""
        if self._hasher is None:
            return None
        with self._hash_lock:
            self._catch_up(self.entry.size)
            return self._hasher.hexdigest()

    def rehash(self) -> str | None:
        """The digest of all bytes as they are on disk, whichever pass they came from."""
        return digests.digest_of(self.path, self.entry) if self._hasher is not None else None

    def start_again(self, keep_bytes: bool) -> None:
        """Forget what was fetched. `keep_bytes`: a new pass that compares with what is there."""
        with self._hash_lock, self._lock:
            self.spans = Spans()
            self.validators = {}
            self.replaced = 0
            if self._hasher is not None:
                self._hasher = digests.hasher(self.entry)
            self.passes = self.passes + 1 if keep_bytes else 1
        self.sync()

    def finish(self, record: Recorder) -> None:
        """Make the file durable, have it recorded, give it its name. A kill in between leaves a
        record of what is not there, which holds nothing, and a part that is whole."""
        os.fsync(self._file)
        self.sync()
        self.close()
        place(self.path, self.target, record)
        self.sidecar.unlink(missing_ok=True)

    def discard(self) -> None:
        self.close()
        for path in (self.path, self.sidecar):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        with self._sync_lock, self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._file)


class Small(Part):
    """A file that is held in memory until it is whole: one write, no sidecar."""

    def __init__(self, folder: Path, entry: Entry, hashed: bool) -> None:
        self.entry = entry
        self.target = folder / entry.path
        self.path, self.sidecar = paths(folder, entry.path)
        self.validators = {}
        self.spans = Spans()
        self.passes = 1
        self.replaced = 0
        self._hashed = hashed
        self._bytes = bytearray(entry.size)

    def write(self, offset: int, data: bytes) -> None:
        stop = offset + len(data)
        if self.passes > 1 and self._bytes[offset:stop] != data:
            self.replaced += len(data)
        self._bytes[offset:stop] = data
        self.spans.add(offset, stop)

    def sync(self) -> None:
        """Nothing is kept of what is not whole."""

    def digest(self) -> str | None:
        if not self._hashed:
            return None
        hasher = digests.hasher(self.entry)
        hasher.update(bytes(self._bytes))
        return hasher.hexdigest()

    def rehash(self) -> str | None:
        return self.digest()

    def start_again(self, keep_bytes: bool) -> None:
        self.spans = Spans()
        self.validators = {}
        self.replaced = 0
        self.passes = self.passes + 1 if keep_bytes else 1

    def finish(self, record: Recorder) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(self._bytes)
            position = 0
            while position < len(view):
                position += os.pwrite(file, view[position:], position)
            os.fsync(file)
        finally:
            os.close(file)
        place(self.path, self.target, record)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is open."""


def place(path: Path, target: Path, record: Recorder) -> None:
    """Give a whole file its name, once it is recorded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    record(path)
    os.replace(path, target)
