"""What a plan and a check say, as types of plain data."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from runbook.shapes import DecisionVerb, Reason, Work


class PlanStep(TypedDict):
    """`unknown`: why its cost cannot be told beforehand, if it cannot."""

    id: str
    uses: str
    decision: DecisionVerb
    reasons: list[Reason]
    work: Work
    approve: str | None
    unknown: str | None


class PlanBody(TypedDict):
    book: str
    workspace: str
    steps: list[PlanStep]
    work: Work
    would_run: bool


class Locked(TypedDict):
    """A name of the book's lock: what it is, and was before; None if that is new. `unresolved`
    says why it, or the names of its step, are not known."""

    step: str
    name: str
    value: str | None
    before: str | None
    unresolved: str | None


class CheckStep(TypedDict):
    id: str
    uses: str
    state: Literal["satisfied", "unmet", "unknown", "inactive"]
    reasons: list[Reason]
    work: Work
    seconds: float


class CheckBody(TypedDict):
    """`unknown`: cannot be told before the steps that it depends on hold."""

    book: str
    workspace: str
    deep: bool
    steps: list[CheckStep]
