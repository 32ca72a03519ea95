"""Known failures, recognised by what a log says. The catalogue is the files in `entries/`.

An entry has: `id`, a stable name that becomes the failure's code · `steps`, the kinds of step in
whose logs it is looked for · `pattern`, a multi-line regular expression · `at_least`, how often it
must match (default 1) · `when`, an expression over `facts` that must be true of the machine; where
these are not known, as of a log from elsewhere, it is not · `fatal`, whether the line alone proves
the failure, also while the process lives · `cause` · `remedy`, a sentence or `{verb, arguments,
kind, text}` · `retryable` · `matches` and `not_matches`, excerpts of logs that must match and that
must not. Lines at the levels of information and warning show no failure and are not looked at. In a
file the more specific entries come first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any

from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.diagnoses.lines import without_passing
from runbook.steps.common.shipped import shipped

QUOTED = 400
"""Characters of a log's line that a failure quotes."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One known failure. `matches` and `not_matches` are excerpts of logs: its tests."""

    id: str
    steps: tuple[str, ...]
    pattern: re.Pattern[str]
    cause: str
    remedy: str | Remedy
    retryable: bool
    fatal: bool
    """Whether the log line alone proves the failure, the process being alive or not."""
    at_least: int
    """How often the pattern must match."""
    when: str
    """What must be true of the machine's facts; empty: anything."""
    matches: str
    not_matches: str

    def found_in(self, text: str) -> str | None:
        """The line of a log that shows it; None if the log does not."""
        span = self.span(text)
        return text[span[0] : span[1]] if span is not None else None

    def span(self, text: str) -> tuple[int, int] | None:
        """Where the lines that show it begin and end."""
        matches = self.pattern.finditer(text)
        match = next(islice(matches, self.at_least - 1, None), None)
        if match is None:
            return None
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        return start, end if end >= 0 else len(text)

    def possible(self, facts: Mapping[str, Any] | None) -> bool:
        """Whether it can be, on a machine with these facts (None: they are not known)."""
        if not self.when:
            return True
        return facts is not None and bool(_expression(self.when)(facts=facts))

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
    """All known failures, of each file those that are more specific before the others."""
    folder = files("runbook.steps.common.diagnoses").joinpath("entries")
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return tuple(_diagnosis(entry) for file in found for entry in shipped(file))


def _diagnosis(entry: dict[str, Any]) -> Diagnosis:
    return Diagnosis(
        id=entry["id"],
        steps=tuple(entry["steps"]),
        pattern=re.compile(entry["pattern"], re.MULTILINE),
        cause=" ".join(entry["cause"].split()),
        remedy=_remedy(entry["remedy"]),
        retryable=entry.get("retryable", False),
        fatal=entry.get("fatal", False),
        at_least=entry.get("at_least", 1),
        when=entry.get("when", ""),
        matches=entry["matches"],
        not_matches=entry["not_matches"],
    )


@cache
def _expression(source: str) -> Callable[..., Any]:
    """A condition, compiled in a sandbox; a fact that is not there is an error when it is asked."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    return sandbox.compile_expression(source, undefined_to_none=False)


def _remedy(data: str | dict[str, Any]) -> str | Remedy:
    """A sentence, or `{verb, arguments, kind, text}`."""
    if isinstance(data, str):
        return " ".join(data.split())
    return Remedy(
        data["verb"],
        tuple(data.get("arguments", ())),
        data.get("kind", ""),
        " ".join(data.get("text", "{command}").split()),
    )


def diagnose(
    step: str, text: str, facts: Mapping[str, Any] | None = None, *, only_fatal: bool = False
) -> Finding | None:
    """The known failure of a kind of step that a log shows first: causes come before symptoms. Of
    two on the same line, the one that comes first in the catalogue. None if it shows none.

    `step` may be empty: any kind. `facts` are those of the machine that wrote it. `only_fatal` asks
    for those that may be concluded while the process still runs.
    """
    text = without_passing(text)
    best: tuple[int, int, Diagnosis] | None = None
    for diagnosis in catalogue():
        if (step and step not in diagnosis.steps) or (only_fatal and not diagnosis.fatal):
            continue
        span = diagnosis.span(text)
        if span is None or (best is not None and span[0] >= best[0]):
            continue
        if diagnosis.possible(facts):
            best = (*span, diagnosis)
    return Finding(best[2], text[best[0] : best[1]]) if best is not None else None
