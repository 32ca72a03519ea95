"""What the checks of a served model find: results, evidence, and whose fault a failure is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from runbook.protocol import Reason
from runbook.remedy import Remedies, Remedy
from runbook.steps import MODEL

Layer = Literal[
    "server",  # it does not answer, or with an error
    "parser",  # reasoning or tool calls are cut out of the text wrongly
    "grammar",  # constrained output: schemas, named tool choice
    "weights",  # the model's weights, their packing, or a kernel that reads them
    "attention",  # what is far back is lost, or answers mix
    "draft",  # the speculative head
    "speed",  # right, but slow
    "question",  # what was asked: too few tokens, a setting of the step
]


@dataclass(slots=True)
class Verdict:
    """A failure of a check, and the layer at fault."""

    code: str
    layer: Layer
    message: str
    remedy: Remedies

    def reason(self) -> Reason:
        return Reason(self.code, f"{self.message} (at fault: {self.layer})", self.remedy)


@dataclass(slots=True)
class Outcome:
    """One check: what it cost and found."""

    name: str
    seconds: float = 0.0
    requests: int = 0
    tokens: int = 0
    evidence: str = ""
    verdicts: list[Verdict] = field(default_factory=list)

    def dump(self) -> dict[str, Any]:
        return {
            "check": self.name,
            "passed": not self.verdicts,
            "seconds": round(self.seconds, 2),
            "requests": self.requests,
            "tokens": self.tokens,
            "evidence": self.evidence,
            "failures": [
                {"code": v.code, "layer": v.layer, "message": v.message} for v in self.verdicts
            ],
        }


class Findings:
    """What was measured, and the outcomes of the checks so far; the last is the present one."""

    def __init__(self) -> None:
        self.measured: dict[str, Any] = {}
        self.outcomes: list[Outcome] = []

    def begin(self, name: str) -> Outcome:
        self.outcomes.append(Outcome(name))
        return self.outcomes[-1]

    def fail(self, code: str, layer: Layer, message: str, remedy: Remedies) -> None:
        self.outcomes[-1].verdicts.append(Verdict(code, layer, message, remedy))

    def note(self, evidence: str) -> None:
        """What the present check saw."""
        self.outcomes[-1].evidence = evidence

    @property
    def failures(self) -> list[Reason]:
        return [verdict.reason() for outcome in self.outcomes for verdict in outcome.verdicts]


def from_model(text: str = "{command}") -> Remedy:
    """Mend or make the checkpoint anew."""
    return Remedy("run", ("--from", "{step}"), MODEL, text)


def from_serve(text: str = "{command}") -> Remedy:
    return Remedy("run", ("--from", "{step}"), "serve", text)


def from_build(text: str = "{command}") -> Remedy:
    return Remedy("run", ("--from", "{step}"), "vllm", text)


def logs_of_serve(text: str = "{command}") -> Remedy:
    return Remedy("logs", ("{step}", "--errors"), "serve", text)
