"""Unified diffs as `git diff` writes them: parsed, and applied exactly, forwards and backwards.

`git apply` and `patch` may be absent on a machine that has only Python, and both are looser than
is wanted here (`patch` allows fuzz). The parsers on the package index (unidiff, whatthepatch) give
no copies and do not apply. All content is bytes, so what is taken off gives the bytes back.
The format: https://git-scm.com/docs/diff-format#generate_patch_text_with_p
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["change", "create", "delete", "rename", "copy"]

_GIT = re.compile(r"diff --git a/(\S+) b/(\S+)\Z")
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)\Z")
_NO_NEWLINE = b"\\ No newline at end of file"
_IGNORED = ("index ", "similarity index ", "dissimilarity index ")


class DiffError(ValueError):
    """The text is not a diff of the form understood here; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


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
        return HunkMismatch(number, hunk, reason, None, _text(old[0]) if old else "", "")
    for j, line in enumerate(old):
        here = lines[near + j] if 0 <= near + j < len(lines) else b""
        if here != line:
            return HunkMismatch(number, hunk, reason, near + j + 1, _text(line), _text(here))
    return HunkMismatch(number, hunk, reason, near + 1, "", "")


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n")


def parse(data: bytes, first_line: int = 1) -> tuple[FileDiff, ...]:
    """The files of a diff, in its order. `first_line` is the number of its first line, for errors.

    Raises `DiffError` on anything that is not understood: what is skipped silently here would be
    missing silently in the build.
    """
    return tuple(_Parser(split_lines(data), first_line).files())


class _Parser:
    def __init__(self, lines: list[bytes], first_line: int) -> None:
        self._lines = lines
        self._first = first_line
        self._at = 0

    def files(self) -> list[FileDiff]:
        found: list[FileDiff] = []
        while self._peek() is not None:
            if self._text() == "":
                self._at += 1
                continue
            found.append(self._file())
        if not found:
            raise self._error("the diff names no file")
        written = [path for file in found for path in file.paths]
        for path in written:
            if written.count(path) > 1:
                raise self._error(f"{path} is written more than once")
        return found

    def _file(self) -> FileDiff:
        match = _GIT.match(self._text())
        if match is None:
            raise self._error(f"expected `diff --git a/... b/...`, found {self._text()!r}")
        old, new = self._safe(match[1]), self._safe(match[2])
        self._at += 1
        kind = self._extended_headers(old, new)
        if kind in ("change", "create", "delete") and old != new:
            raise self._error(f"{old} and {new} differ without `rename` or `copy`")
        hunks = self._hunks(kind, old, new)
        if not hunks and kind == "change":
            raise self._error(f"nothing changes in {new}")
        return FileDiff(kind, old, new, tuple(hunks))

    def _extended_headers(self, old: str, new: str) -> Kind:
        kind: Kind = "change"
        while (text := self._text()) is not None and not text.startswith(("--- ", "diff --git ")):
            if text == "new file mode 100644":
                kind = "create"
            elif text == "deleted file mode 100644":
                kind = "delete"
            elif text in (f"rename from {old}", f"rename to {new}"):
                kind = "rename"
            elif text in (f"copy from {old}", f"copy to {new}"):
                kind = "copy"
            elif not text or self._peek() is None:
                break
            elif not text.startswith(_IGNORED):
                raise self._error(f"{text!r} is not supported")
            self._at += 1
        return kind

    def _hunks(self, kind: Kind, old: str, new: str) -> list[Hunk]:
        text = self._text()
        if self._peek() is None or not text.startswith("--- "):
            return []
        if text != ("--- /dev/null" if kind == "create" else f"--- a/{old}"):
            raise self._error(f"{text!r} does not name the file of this diff")
        self._at += 1
        text = self._text()
        if text != ("+++ /dev/null" if kind == "delete" else f"+++ b/{new}"):
            raise self._error(f"{text!r} does not name the file of this diff")
        self._at += 1
        hunks: list[Hunk] = []
        end = 0
        while (line := self._peek()) is not None and line.startswith(b"@@ "):
            where = self._at
            hunk = self._hunk()
            if hunk.old_start < end:
                self._at = where
                raise self._error("the hunks overlap or are out of order")
            if kind in ("change", "rename", "copy") and not (hunk.old and hunk.new):
                self._at = where
                raise self._error("a hunk of an existing file needs context")
            end = hunk.old_start + len(hunk.old)
            hunks.append(hunk)
        if not hunks:
            raise self._error("expected a hunk, `@@ -A,B +C,D @@`")
        return hunks

    def _hunk(self) -> Hunk:
        line = self._peek()
        assert line is not None
        match = _HUNK.match(line.rstrip(b"\n"))
        if match is None:
            raise self._error(f"malformed hunk header {_text(line)!r}")
        header = _text(line)
        left = int(match[2] or 1)
        right = int(match[4] or 1)
        self._at += 1
        old: list[bytes] = []
        new: list[bytes] = []
        while left or right:
            line = self._peek()
            if line is None:
                raise self._error(f"the hunk {header} is cut short")
            sign, rest = line[:1], line[1:]
            # Editors and mail strip the blank of an empty context line.
            if line == b"\n":
                sign, rest = b" ", line
            if sign not in (b" ", b"-", b"+"):
                raise self._error(f"unexpected {_text(line)!r} in the hunk {header}")
            self._at += 1
            following = self._peek()
            if following is not None and following.rstrip(b"\n") == _NO_NEWLINE:
                rest = rest.removesuffix(b"\n")
                self._at += 1
            if sign != b"+":
                old.append(rest)
                left -= 1
            if sign != b"-":
                new.append(rest)
                right -= 1
            if left < 0 or right < 0:
                raise self._error(f"the hunk {header} is longer than it says")
        return Hunk(header, int(match[1]), int(match[3]), tuple(old), tuple(new))

    def _safe(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise self._error(f"{path} leads out of the tree")
        return path

    def _peek(self) -> bytes | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def _text(self) -> str:
        line = self._peek()
        return "" if line is None else _text(line)

    def _error(self, message: str) -> DiffError:
        return DiffError(message, self._first + self._at)
