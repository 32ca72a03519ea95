"""What a repository holds at one revision, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Digest:
    """`sha256` of a file in large file storage; `git-sha1`, the blob id, of any other."""

    algorithm: str
    value: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    size: int
    digest: Digest


@dataclass(frozen=True)
class Listing:
    """The wanted files of `repo` at `revision` (a full commit hash)."""

    repo: str
    revision: str
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.entries)

    def dump(self) -> dict[str, Any]:
        return {
            "repo": self.repo,
            "revision": self.revision,
            "files": {e.path: [e.size, str(e.digest)] for e in self.entries},
        }
