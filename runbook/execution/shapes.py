"""What a run and an undoing say of each step, as types of plain data."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

from runbook.shapes import DecisionVerb, Error, Reason, State


class RunStep(TypedDict):
    id: str
    state: State
    decision: DecisionVerb
    reasons: list[Reason]
    seconds: NotRequired[float]
    question: NotRequired[str]
    cause: NotRequired[str]
    error: NotRequired[Error]
    exit_code: NotRequired[int]


class Made(TypedDict):
    """`stays`: it lies outside the workspace, where `destroy` removes nothing by itself; of what
    was undone, that it is still there."""

    path: str
    bytes: int
    stays: bool


class DestroyStep(TypedDict):
    id: str
    uses: str
    decision: Literal["undo", "forget"]
    state: Literal["planned", "undone", "failed", "skipped"]
    paths: list[Made]
