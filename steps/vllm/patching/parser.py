"""Unified diffs as `git diff` writes them, parsed.

The parsers on the package index (unidiff, whatthepatch) give no copies and skip what they do not
know. The format: https://git-scm.com/docs/diff-format#generate_patch_text_with_p
"""

from __future__ import annotations

import re

from runbook.steps.vllm.patching.diff import FileDiff, Hunk, Kind, split_lines, text_of

_GIT = re.compile(r"diff --git a/(\S+) b/(\S+)\Z")
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)\Z")
_NO_NEWLINE = b"\\ No newline at end of file"
_IGNORED = ("index ", "similarity index ", "dissimilarity index ")


class DiffError(ValueError):
    """The text is not a diff of the form understood here; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


def safe_path(path: str) -> str:
    """The path of a file below the root of a source, in the one form that it has; raises
    ValueError for any other."""
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} leads out of the tree")
    if {"", "."} & set(path.split("/")):
        raise ValueError(f"{path!r} is not the plain path of a file")
    if not path.isprintable() or "\N{REPLACEMENT CHARACTER}" in path:
        raise ValueError(f"{path!r} has characters that are not printable UTF-8")
    return path


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
        written: set[str] = set()
        for path in (path for file in found for path in file.paths):
            if path in written:
                raise self._error(f"{path} is written more than once")
            written.add(path)
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
            raise self._error(f"malformed hunk header {text_of(line)!r}")
        header = text_of(line)
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
                raise self._error(f"unexpected {text_of(line)!r} in the hunk {header}")
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
        try:
            return safe_path(path)
        except ValueError as error:
            raise self._error(str(error)) from error

    def _peek(self) -> bytes | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def _text(self) -> str:
        line = self._peek()
        return "" if line is None else text_of(line)

    def _error(self, message: str) -> DiffError:
        return DiffError(message, self._first + self._at)
