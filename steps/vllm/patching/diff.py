"""Unified diffs, applied exactly, forwards and backwards.

`git apply` and `patch` may be absent on a machine that has only Python, and both are looser than
is wanted here (`patch` allows fuzz). All content is bytes, so what is taken off gives the bytes
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["change", "create", "delete", "rename", "copy"]


class HunkMismatch(Exception):
    """A hunk does not fit. `near` is the first line (from 1) that differs in the closest context,
    None in an empty file; `wanted` and `found` are the hunk's and the file's text of that line."""

    def __init__(
        self, number: int, hunk: Hunk, reason: str, near: int | None, wanted: str, found: str
    ) -> None:
        super().__init__(reason)
        self.number = number
        self.hunk = hunk
        self.reason = reason
        self.near = near
        self.wanted = wanted
        self.found = found


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines with their terminators; `old_start` and `new_start` count from 1."""

    header: str
    old_start: int
    new_start: int
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]

    def reversed(self) -> Hunk:
        return Hunk(self.header, self.new_start, self.old_start, self.new, self.old)


@dataclass(frozen=True, slots=True)
class FileDiff:
    """What a diff does to one file. `old` is the path read, `new` the path written; they differ
    for `rename` and `copy`, and are equal otherwise."""

    kind: Kind
    old: str
    new: str
    hunks: tuple[Hunk, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths whose content changes."""
        return (self.old, self.new) if self.kind == "rename" else (self.new,)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The patched content, and by how many lines its hunks had moved, summed."""

    data: bytes
    displacement: int


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their terminators; only a line feed ends one, so a CR stays part of its line."""
    lines = data.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def fit(data: bytes, hunks: Sequence[Hunk]) -> Fitted:
    """Apply hunks in order; raises `HunkMismatch`.

    A hunk goes where it says, moved as far as the hunks before it had moved; else to the only
    place below them where it matches.
    """
    lines = split_lines(data)
    result: list[bytes] = []
    at, drift, displacement = 0, 0, 0
    for number, hunk in enumerate(hunks, 1):
        said = _index(hunk)
        found = _find(lines, hunk, at, said + drift, number)
        drift = found - said
        displacement += abs(drift)
        result += lines[at:found]
        result += hunk.new
        at = found + len(hunk.old)
    return Fitted(b"".join(result + lines[at:]), displacement)


def _index(hunk: Hunk) -> int:
    # With no old lines the number names the line before the insertion.
    return hunk.old_start - 1 if hunk.old else hunk.old_start


def _find(lines: list[bytes], hunk: Hunk, start: int, expected: int, number: int) -> int:
    old = list(hunk.old)
    if not old:
        # Without context nothing can be compared, so only an empty file will do.
        if not lines:
            return 0
        raise _mismatch(lines, hunk, number, "the hunk has no context and the file is not empty")
    size = len(old)
    if expected >= start and lines[expected : expected + size] == old:
        return expected
    places = [
        i
        for i in range(start, len(lines) - size + 1)
        if lines[i] == old[0] and lines[i : i + size] == old
    ]
    if len(places) == 1:
        return places[0]
    if places:
        where = ", ".join(str(i + 1) for i in places)
        raise _mismatch(lines, hunk, number, f"it fits at more than one place: lines {where}")
    raise _mismatch(lines, hunk, number, "its context was not found")


def _mismatch(lines: list[bytes], hunk: Hunk, number: int, reason: str) -> HunkMismatch:
    """Name the place where most lines of the hunk match; of equals the one nearest to where the
    hunk belongs."""
    old = hunk.old
    best: tuple[int, int] | None = None
    near = None
    for i in range(-len(old) + 1, len(lines)) if lines else ():
        score = sum(
            lines[i + j] == line
            for j, line in enumerate(old)
            if 0 <= i + j < len(lines) and line.strip()
        )
        rank = (score, -abs(i - _index(hunk)))
        if best is None or rank > best:
            best, near = rank, i
    if near is None:
        return HunkMismatch(number, hunk, reason, None, text_of(old[0]) if old else "", "")
    for j, line in enumerate(old):
        here = lines[near + j] if 0 <= near + j < len(lines) else b""
        if here != line:
            return HunkMismatch(number, hunk, reason, near + j + 1, text_of(line), text_of(here))
    return HunkMismatch(number, hunk, reason, near + 1, "", "")


def text_of(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n")
