"""Known failures, recognised by what a log says. The catalogue is `diagnoses.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice

from runbook.protocol import StepFailure

QUOTED = 400
"""Characters of a log's line that a failure quotes."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One known failure. `matches` and `not_matches` are excerpts of logs: its tests."""

    id: str
    steps: tuple[str, ...]
    pattern: re.Pattern[str]
    cause: str
    remedy: str
    retryable: bool
    fatal: bool
    """Whether the log line alone proves the failure, the process being alive or not."""
    at_least: int
    """How often the pattern must match: some messages are harmless once and a hang in series."""
    matches: str
    not_matches: str

    def found_in(self, text: str) -> str | None:
        """The line of a log that shows it; None if the log does not."""
        matches = self.pattern.finditer(text)
        match = next(islice(matches, self.at_least - 1, None), None)
        if match is None:
            return None
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        return text[start : end if end >= 0 else len(text)]

    def failure(self, message: str, line: str, where: str = "") -> StepFailure:
        return StepFailure(
            message,
            code=self.id,
            cause=f"{self.cause}\n{line.strip()[:QUOTED]}",
            remedy=self.remedy,
            retryable=self.retryable,
            where=where,
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A known failure, and the line that shows it."""

    diagnosis: Diagnosis
    line: str

    def failure(self, message: str, where: str = "") -> StepFailure:
        return self.diagnosis.failure(message, self.line, where)


@cache
def catalogue() -> tuple[Diagnosis, ...]:
    """All known failures, those that are more specific before those that are less."""
    import yaml

    entries = yaml.safe_load(files("runbook.steps.common").joinpath("diagnoses.yaml").read_text())
    return tuple(
        Diagnosis(
            id=entry["id"],
            steps=tuple(entry["steps"]),
            pattern=re.compile(entry["pattern"], re.MULTILINE),
            cause=" ".join(entry["cause"].split()),
            remedy=" ".join(entry["remedy"].split()),
            retryable=entry.get("retryable", False),
            fatal=entry.get("fatal", False),
            at_least=entry.get("at_least", 1),
            matches=entry["matches"],
            not_matches=entry["not_matches"],
        )
        for entry in entries
    )


def diagnose(step: str, text: str, *, only_fatal: bool = False) -> Finding | None:
    """The first known failure of a kind of step that a log shows; None if it shows none.

    `only_fatal` asks for those that may be concluded while the process still runs.
    """
    for diagnosis in catalogue():
        if step in diagnosis.steps and (diagnosis.fatal or not only_fatal):
            line = diagnosis.found_in(text)
            if line is not None:
                return Finding(diagnosis, line)
    return None
