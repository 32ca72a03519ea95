"""The shape of every `--json` answer. The committed schemas are made of it (`make schema`); a
test compares. Readers ignore fields that they do not know."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

from runbook.execution.shapes import DestroyStep, RunStep
from runbook.planning.shapes import CheckBody, PlanBody
from runbook.shapes import Error, Outputs
from runbook.state.shapes import Event, RunSummary, StatusBody

Schema = Literal["runbook/1"]


class DocumentProblem(TypedDict):
    file: str
    line: int
    column: int
    breadcrumb: str
    code: str
    message: str
    expected: str
    suggestion: str


class Envelope(TypedDict):
    schema: Schema
    ok: bool
    next: list[str]
    inputs: NotRequired[dict[str, Any]]
    error: NotRequired[Error]


class Refusal(TypedDict):
    """Any verb, when it could not begin."""

    schema: Schema
    kind: str
    ok: Literal[False]
    error: Error
    next: list[str]
    errors: NotRequired[list[DocumentProblem]]


class Validate(Envelope):
    kind: Literal["validate"]
    book: str
    source: str
    errors: list[DocumentProblem]


class Plan(Envelope, PlanBody):
    kind: Literal["plan"]


class Check(Envelope, CheckBody):
    """`unknown`: cannot be told before the steps that it depends on hold."""

    kind: Literal["check"]


class Run(Envelope):
    kind: Literal["run"]
    book: str
    workspace: str
    run: str | None
    steps: list[RunStep]
    outputs: dict[str, Outputs]
    endpoint: str | None
    errors: list[Error]


class Detached(Envelope):
    kind: Literal["run"]
    run: str
    detached: Literal[True]


Ran = Run | Detached


class Status(Envelope, StatusBody):
    kind: Literal["status"]


class Wait(Envelope, StatusBody):
    kind: Literal["wait"]
    events: list[Event]


class Logs(Envelope):
    """`diagnosis`, with `--errors`: the known failure that the log shows."""

    kind: Literal["logs"]
    step: str
    run: str
    attempt: int
    path: str
    lines: list[str]
    diagnosis: Error | None


class Report(Envelope):
    """`bytes`: of the file at `path`."""

    kind: Literal["report"]
    path: str
    bytes: int


class Packed(TypedDict):
    """A file in the archive."""

    name: str
    bytes: int
    sha256: str


class Bundle(Envelope):
    kind: Literal["bundle"]
    path: str
    bytes: int
    files: list[Packed]


class Events(Envelope):
    kind: Literal["events"]
    run: RunSummary | None
    events: list[Event]
    seq: int


class Cancel(Envelope):
    kind: Literal["cancel"]
    cancelled: bool
    run: str | None


class Destroy(Envelope):
    kind: Literal["destroy"]
    book: str
    workspace: str
    steps: list[DestroyStep]


class Book(TypedDict):
    name: str
    description: str
    steps: list[str]


class List(Envelope):
    kind: Literal["list"]
    books: list[Book]
