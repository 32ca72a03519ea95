"""Plain data that answers, events and records share, as types. They cost nothing at run time:
what returns them imports them for the type checker only; the schemas are made of them."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

State = Literal[
    "never_ran",
    "pending",
    "running",
    "retrying",
    "waiting",
    "satisfied",
    "inactive",
    "stopped",
    "failed",
    "unmet",
    "blocked",
    "cancelled",
    "interrupted",
    "orphaned",
]
DecisionVerb = Literal["run", "adopt", "skip", "later", "inactive", "unmet"]
Outputs = dict[str, Any]


class Reason(TypedDict):
    code: str
    message: str
    remedy: str
    severity: Literal["error", "warning", "info"]


class Work(TypedDict):
    """Bytes to transfer, seconds, bytes of disk."""

    bytes: int
    seconds: float
    disk: int


class Error(TypedDict):
    """What went wrong, why, what to do, whether to try again, where, and the log."""

    code: str
    message: str
    cause: str
    remedy: str
    retryable: bool
    where: str
    log: str
    step: NotRequired[str]


class Process(TypedDict):
    pid: int
    start_time: int
    boot_id: str


class Item(TypedDict):
    """Something that is being worked on, in the progress's unit."""

    name: str
    done: float
    total: float


class Progress(TypedDict):
    done: float
    total: float | None
    unit: str
    message: str
    items: list[Item]
