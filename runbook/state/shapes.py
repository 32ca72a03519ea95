"""What is recorded of runs and steps, as types of plain data."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

from runbook.shapes import (
    DecisionVerb,
    Error,
    Item,
    Outputs,
    Process,
    Progress,
    Reason,
    State,
    Work,
)


class RunSummary(TypedDict):
    id: str
    state: Literal["running", "orphaned", "interrupted", "finished"]
    started: str
    finished: str | None
    exit_code: int | None
    seq: int


class StatusStep(TypedDict):
    id: str
    uses: str
    state: State
    since: str | None
    seconds: float | None
    attempt: int | None
    progress: Progress | None
    error: Error | None
    log: str | None
    question: str | None
    endpoint: str | None


class Carried(TypedDict):
    """What an earlier run left unfinished of a step."""

    state: Literal["interrupted", "failed"]
    since: str
    error: Error | None
    log: str


class Event(TypedDict):
    """`type` says which of the other fields are there."""

    seq: int
    time: str
    type: Literal[
        "run.started",
        "run.carried",
        "run.finished",
        "step.decided",
        "step.satisfied",
        "step.waiting",
        "step.approved",
        "step.blocked",
        "attempt.started",
        "attempt.progress",
        "attempt.notice",
        "attempt.failed",
        "attempt.succeeded",
        "undo.started",
        "undo.finished",
        "undo.failed",
    ]
    book: NotRequired[str]
    source: NotRequired[str]
    inputs: NotRequired[dict[str, Any]]
    workspace: NotRequired[str]
    package: NotRequired[str]
    runnable: NotRequired[list[str]]
    forced: NotRequired[list[str]]
    steps: NotRequired[dict[str, Carried]]
    step: NotRequired[str]
    attempt: NotRequired[int]
    seconds: NotRequired[float]
    done: NotRequired[float]
    total: NotRequired[float | None]
    unit: NotRequired[str]
    message: NotRequired[str]
    items: NotRequired[list[Item]]
    decision: NotRequired[DecisionVerb]
    reasons: NotRequired[list[Reason]]
    work: NotRequired[Work]
    state: NotRequired[State]
    question: NotRequired[str]
    needs: NotRequired[list[str]]
    log: NotRequired[str]
    process: NotRequired[Process | None]
    outputs: NotRequired[Outputs]
    error: NotRequired[Error | None]
    errors: NotRequired[list[Error]]
    unsettled: NotRequired[list[str]]
    retry_in: NotRequired[float | None]
    exit_code: NotRequired[int]
    ok: NotRequired[bool]


class StatusBody(TypedDict):
    """`errors`: what `run` gave, once it has ended; each step that failed has one."""

    book: str
    workspace: str
    run: RunSummary | None
    steps: list[StatusStep]
    endpoint: str | None
    errors: list[Error]
