"""What only the user can say, asked by name: all of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runbook.errors import USAGE, RunbookError

NONE = "none"
"""What an option says that is to be left out."""
SHOWN = 60


@dataclass
class Asking:
    """Collects questions: (option, what it is, the values there are)."""

    questions: list[tuple[str, str, Sequence[str]]] = field(default_factory=list)

    def ask(self, option: str, why: str, values: Sequence[str] = ()) -> None:
        self.questions.append((option, why, values))

    def end(self, subject: str) -> None:
        """Raises `RunbookError` that lists what is asked, if anything is."""
        if not self.questions:
            return
        lines = [
            f"{option}: {why}" + (f"; one of {_short(values)}" if values else "")
            for option, why, values in self.questions
        ]
        options = ", ".join(option for option, _, _ in self.questions)
        raise RunbookError(
            f"{len(lines)} thing(s) cannot be known of {subject}: {options}",
            code="asked",
            exit_code=USAGE,
            cause="\n".join(lines),
            remedy=f"say them: {' '.join(f'{option} ...' for option, _, _ in self.questions)}",
            where=subject,
        )


def _short(values: Sequence[str]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(values[:SHOWN]) + more
