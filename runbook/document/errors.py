"""What is wrong with a document, as data. Imports only the standard library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of a document, or of the inputs given for it.

    `line` and `column` count from 1; both are 0 where there is no document text to point at
    (`file` then names the source: `--set` or `environment`). `code` is a stable snake_case name.
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
        text = f"{where}: {crumb}{self.message}"
        if self.expected:
            text += f"; expected {self.expected}"
        if self.suggestion:
            text += f"; did you mean {self.suggestion}?"
        return text


class DocumentInvalid(Exception):
    """A document, or the inputs given for it, cannot be used. Holds every error found."""

    exit_code = 2
    code = "document_invalid"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.file, p.line, p.column)))
        super().__init__("\n".join(map(str, self.problems)))

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The problems as plain JSON data."""
        return [asdict(p) for p in self.problems]
