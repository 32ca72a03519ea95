"""What is wrong with a document, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runbook.errors import USAGE, Failure
from runbook.remedy import Remedies, Remedy

CORRECT = Remedy("validate", text="correct what is listed, then ask {command}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of a document, or of the inputs given for it.

    `line` and `column` count from 1; both are 0 where there is no text to point at (`file` then
    names the source: a book, an option or an environment variable). `code` is a stable
    snake_case name.
    """

    file: str
    line: int
    column: int
    breadcrumb: str
    code: str
    message: str
    expected: str = ""
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        crumb = f"{self.breadcrumb}: " if self.breadcrumb else ""
        return f"{where}: {crumb}{self.text}"

    @property
    def text(self) -> str:
        """The message with what was expected and what was perhaps meant."""
        text = self.message
        if self.expected:
            text += f"; expected {self.expected}"
        if self.suggestion:
            text += f"; did you mean `{self.suggestion}`?"
        return text


class DocumentInvalid(Failure):
    """A document, or the inputs given for it, cannot be used. Holds every error found."""

    def __init__(
        self,
        problems: Iterable[Problem],
        remedy: Remedies = CORRECT,
    ) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.column, p.file)))
        first = self.problems[0]
        super().__init__(
            self._headline(),
            code="document_invalid",
            exit_code=USAGE,
            cause="\n".join(map(str, self.problems)),
            remedy=remedy,
            where=f"{first.file}:{first.line}:{first.column}" if first.line else first.file,
        )

    def __str__(self) -> str:
        return f"{self.message}\n{self.cause}"

    def _headline(self) -> str:
        if self.problems[0].code in ("unknown_book", "not_readable"):
            return "there is no document to read"
        given = sum(1 for p in self.problems if not p.line or p.code == "input_missing")
        wrong = len(self.problems) - given
        parts = [f"the document has {_count(wrong, 'error')}"] if wrong else []
        if given:
            whose = "it" if wrong else "the document"
            parts.append(f"{_count(given, 'value')} given for {whose} cannot be used or is missing")
        return ", ".join(parts)

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The problems as plain JSON data."""
        return [asdict(p) for p in self.problems]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was perhaps meant, or an empty string."""
    import difflib

    known = list(known)
    folded = {k.lower().replace("-", "_"): k for k in reversed(known)}
    key = name.lower().replace("-", "_")
    if key in folded:
        return folded[key] if folded[key] != name else ""
    near = difflib.get_close_matches(key, folded, 1, 0.6) or [
        k for k in folded if min(len(k), len(key)) > 2 and (k.startswith(key) or key.startswith(k))
    ]
    return folded[near[0]] if near else ""


def alternatives(names: Sequence[str]) -> str:
    """`a`, `b` or `c`."""
    quoted = [f"`{n}`" for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f" or {quoted[-1]}"
