"""Known failures, recognised by what a log says. The catalogue is `diagnoses.yaml`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice

from runbook.protocol import StepFailure


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

    def found_in(self, text: str) -> bool:
        matches = self.pattern.finditer(text)
        return next(islice(matches, self.at_least - 1, None), None) is not None

    def failure(self, message: str, where: str = "") -> StepFailure:
        return StepFailure(
            message,
            code=self.id,
            cause=self.cause,
            remedy=self.remedy,
            retryable=self.retryable,
            where=where,
        )


@cache
def catalogue() -> tuple[Diagnosis, ...]:
    """All known failures, those that are more specific before those that are less."""
    import yaml

    entries = yaml.safe_load(files("runbook.steps").joinpath("diagnoses.yaml").read_text())
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


def diagnose(step: str, text: str, *, only_fatal: bool = False) -> Diagnosis | None:
    """The first known failure of a kind of step that a log shows; None if it shows none.

    `only_fatal` asks for those that may be concluded while the process still runs.
    """
    return first([d for d in catalogue() if step in d.steps and (d.fatal or not only_fatal)], text)


def first(candidates: Sequence[Diagnosis], text: str) -> Diagnosis | None:
    return next((d for d in candidates if d.found_in(text)), None)
