"""What the words of an installer that failed mean for its user."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.disk import FULL_WORDS

KEPT_LINES = 8
"""Of the output that a failure quotes as its cause."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """A pattern in an installer's output, and the failure that it tells of. In message and remedy
    `{name}` stands for the group `name` of the pattern."""

    pattern: str
    code: str
    message: str
    remedy: str | Remedy
    retryable: bool = False
    precondition: bool = False
    """Whether the world outside the workspace must change first."""

    def failure(self, found: re.Match[str], cause: str) -> StepFailure:
        words = {name: text or "" for name, text in found.groupdict().items()}
        remedy = self.remedy
        if isinstance(remedy, Remedy):
            remedy = replace(remedy, text=_filled(remedy.text, words))
        else:
            remedy = _filled(remedy, words)
        kind = PreconditionNotMet if self.precondition else StepFailure
        return kind(
            _filled(self.message, words),
            code=self.code,
            cause=cause,
            remedy=remedy,
            retryable=self.retryable,
        )


DISK_FULL = Symptom(
    FULL_WORDS,
    "disk_full",
    "the disk is full",
    Remedy("run", text="make room (`df -h`), then {command}: what is complete is kept"),
    precondition=True,
)


def diagnose(output: str, symptoms: Iterable[Symptom]) -> StepFailure | None:
    """The failure of the first symptom that is found; its cause begins at the line that shows
    it. None if there is no known symptom."""
    for symptom in symptoms:
        if found := re.search(symptom.pattern, output):
            start = output.rfind("\n", 0, found.start()) + 1
            lines = _without_repetitions(output[start:].splitlines())
            return symptom.failure(found, "\n".join(lines[:KEPT_LINES]).strip())
    return None


def _without_repetitions(lines: Iterable[str]) -> list[str]:
    """One of the lines that differ in their numbers only: installers count their tries."""
    seen: dict[str, str] = {}
    for line in lines:
        seen.setdefault(re.sub(r"\d+", "", line), line)
    return list(seen.values())


def _filled(text: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", word)
    return text
