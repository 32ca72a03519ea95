"""What the words of an installer that failed mean for its user."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from runbook.protocol import StepFailure


@dataclass(frozen=True, slots=True)
class Symptom:
    """A pattern in an installer's output, and the failure that it tells of."""

    pattern: str
    code: str
    message: str
    remedy: str
    retryable: bool


DISK_FULL = Symptom(
    r"No space left on device|Disk quota exceeded",
    "disk_full",
    "the disk is full",
    "free some space and run again: what is complete is kept",
    False,
)


def diagnose(output: str, symptoms: Iterable[Symptom]) -> StepFailure | None:
    """The failure of the first symptom that is found; its cause begins at the line that shows
    it. None if there is no known symptom."""
    for symptom in symptoms:
        if found := re.search(symptom.pattern, output):
            start = output.rfind("\n", 0, found.start()) + 1
            return StepFailure(
                symptom.message,
                code=symptom.code,
                cause="\n".join(output[start:].splitlines()[:8]).strip(),
                remedy=symptom.remedy,
                retryable=symptom.retryable,
            )
    return None
