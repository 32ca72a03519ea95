"""The record beside the files: what they are, and the stat by which a change is seen.

`.runbook-weights.json` is a stamp (common/stamp.py): the wish as inputs, the listing, and of each
proven file the mark, the origin and whether its digest was proven. Reading it and one stat(2) per
file is all that a quick check does. While files come in they are added to a journal in the folder
of unfinished files, a line each, so that ten thousand files are ten thousand lines and not as many
records; a record is written at the beginning and at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbook.files import sync_folder
from runbook.steps.common.hub import untrusted
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.parts import FOLDER
from runbook.steps.common.stamp import RESULT, Stamp, mark

NAME = ".runbook-weights.json"
KIND = "hub-files"
JOURNAL = "journal.ndjson"
SYNC_BYTES = 64 << 20
"""Bytes of files that may be lines of the journal which a power cut takes."""
LEAST_BYTES = SYNC_BYTES // 256
"""What a file counts for at least: 10,000 small ones wait 40 times for the disk, not 10,000."""
ORIGINS = ("downloaded", "linked", "adopted")


@dataclass(frozen=True, slots=True)
class Record:
    """A file that is whole. `origin`: downloaded, linked (from the cache) or adopted (put there
    by its user); `verified`: the digest was proven, not the size alone."""

    size: int
    mtime_ns: int
    origin: str
    verified: bool

    @classmethod
    def of(cls, path: Path, origin: str, verified: bool) -> Record:
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, origin, verified)

    def holds(self, path: Path | str) -> bool:
        return mark(path) == [self.size, self.mtime_ns]


@dataclass
class Inventory:
    """`wanted`: the inputs that chose the files (repo, revision as asked for, patterns)."""

    wanted: dict[str, Any]
    listing: Listing
    records: dict[str, Record] = field(default_factory=dict)
    complete: bool = False
    _began: bool = False
    _unsynced: int = 0

    @classmethod
    def load(cls, folder: Path) -> Inventory | None:
        """That of a folder; None where there is none, or none of the right form."""
        stamp = Stamp.read(folder / NAME, KIND)
        if stamp is None:
            return None
        try:
            listing = untrusted.listing(stamp.made["listing"])
            proofs = dict(stamp.made["proofs"])
            records = {
                path: _record(size, time, *proofs[path])
                for path, (size, time) in stamp.files[RESULT].items()
            }
        except (KeyError, TypeError, ValueError):
            return None
        wanted = dict(stamp.inputs)
        if not {"repo", "revision"} <= wanted.keys():
            return None
        found = cls(wanted, listing, records, stamp.complete)
        found._read_journal(folder)
        return found

    def save(self, folder: Path) -> None:
        """Write the whole record; the journal begins anew."""
        proofs = {path: [r.origin, r.verified] for path, r in self.records.items()}
        marks = {path: [r.size, r.mtime_ns] for path, r in self.records.items()}
        made = {"listing": self.listing.dump(), "proofs": proofs}
        stamp = Stamp(KIND, self.wanted, {}, {RESULT: marks}, made, self.complete)
        stamp.write(folder / NAME)
        (folder / FOLDER / JOURNAL).unlink(missing_ok=True)

    def add(self, folder: Path, entry: Entry, record: Record) -> None:
        """Add a file, durably: but for the latest small ones if power is cut, which then are files
        that the user put there."""
        self.records[entry.path] = record
        said = [record.size, record.mtime_ns, record.origin, record.verified]
        self._append(folder, [entry.path, str(entry.digest), *said], record.size)

    def drop(self, folder: Path, entry: Entry) -> None:
        self.records.pop(entry.path, None)
        self._append(folder, [entry.path, str(entry.digest)], SYNC_BYTES)

    def unproven(self, folder: Path, verify: str) -> Iterator[Entry]:
        """The files that are missing, changed, or proven by less than is asked for."""
        root = os.fspath(folder)
        for entry in self.listing.entries:
            record = self.records.get(entry.path)
            if (
                record is None
                or (verify == "sha256" and not record.verified)
                or not record.holds(f"{root}/{entry.path}")
            ):
                yield entry

    def _append(self, folder: Path, line: list[Any], size: int) -> None:
        # A line that a kill cut off is ended by the newline before the next one.
        text = ("" if self._began else "\n") + json.dumps(line) + "\n"
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = os.open(folder / FOLDER / JOURNAL, flags, 0o644)
        try:
            os.write(file, text.encode())
            self._unsynced += max(size, LEAST_BYTES)
            if self._unsynced >= SYNC_BYTES:
                self._unsynced = 0
                os.fsync(file)
        finally:
            os.close(file)
        if not self._began:
            sync_folder(folder / FOLDER)
        self._began = True

    def _read_journal(self, folder: Path) -> None:
        """Take in what was added since. A line counts for the content that it was written of."""
        try:
            lines = (folder / FOLDER / JOURNAL).read_bytes().splitlines()
        except OSError:
            return
        digests = {entry.path: str(entry.digest) for entry in self.listing.entries}
        for line in lines:
            try:
                path, digest, *said = json.loads(line)
                if digests.get(path) != digest:
                    continue
                if said:
                    self.records[path] = _record(*said)
                else:
                    self.records.pop(path, None)
            except (ValueError, TypeError, RecursionError):
                continue


def _record(size: object, time: object, origin: object, verified: object) -> Record:
    if type(size) is int and type(time) is int and type(verified) is bool and origin in ORIGINS:
        return Record(size, time, str(origin), verified)
    raise ValueError("no record of a file")


def name_of(wanted: Mapping[str, Any]) -> str:
    """What files are, for a message."""
    return f"{wanted['repo']} at {str(wanted['revision'])[:12]}"
