"""The record beside the files: what they are, and the stat by which a change is seen.

One small JSON file in the destination, rewritten after each file, so that a killed run knows what
was proven before. Reading it and one stat(2) per file is all that a quick check does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbook.files import read_json, write_json
from runbook.steps.common.hub.listing import Entry, Listing

NAME = ".runbook-weights.json"
FORMAT = "runbook-weights/1"


@dataclass(frozen=True)
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

    def holds(self, path: Path) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass
class Stamp:
    """`wanted`: the inputs that chose the files (repo, revision as asked for, patterns)."""

    wanted: dict[str, Any]
    listing: Listing
    records: dict[str, Record] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def load(cls, folder: Path) -> Stamp | None:
        data = read_json(folder / NAME)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            return None
        records = {path: Record(*values) for path, values in data["records"].items()}
        return cls(data["wanted"], Listing.load(data["listing"]), records, data["complete"])

    def save(self, folder: Path) -> None:
        records = {
            path: [r.size, r.mtime_ns, r.origin, r.verified] for path, r in self.records.items()
        }
        write_json(
            folder / NAME,
            {
                "format": FORMAT,
                "complete": self.complete,
                "wanted": self.wanted,
                "listing": self.listing.dump(),
                "records": records,
            },
        )

    def unproven(self, folder: Path, verify: str) -> Iterator[Entry]:
        """The files that are missing, changed, or proven by less than is asked for."""
        for entry in self.listing.entries:
            record = self.records.get(entry.path)
            if (
                record is None
                or (verify == "sha256" and not record.verified)
                or not record.holds(folder / entry.path)
            ):
                yield entry
