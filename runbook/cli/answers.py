"""The shape of every `--json` answer. The committed schemas are made of it (`make schema`); a
test compares. Readers ignore fields that they do not know."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

from runbook.execution.shapes import DestroyStep, RunStep
from runbook.planning.shapes import CheckBody, Locked, PlanBody
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
    """`unset_secrets`: those that the document declares and the environment lacks."""

    kind: Literal["plan"]
    unset_secrets: list[str]


class Check(Envelope, CheckBody):
    """`unknown`: cannot be told before the steps that it depends on hold."""

    kind: Literal["check"]


class Served(TypedDict):
    """What is served: what was measured of it, and commands that ask it, end it, start it anew and
    let it start at boot (null: the user's systemd starts it, as `unit`)."""

    step: str
    endpoint: str
    model: str | None
    request: str | None
    tokens_per_second: float | None
    acceptance: float | None
    stop: str
    restart: str
    unit: str | None
    at_boot: str | None


class Run(Envelope):
    kind: Literal["run"]
    book: str
    workspace: str
    run: str | None
    steps: list[RunStep]
    outputs: dict[str, Outputs]
    endpoint: str | None
    served: Served | None
    unset_secrets: list[str]
    errors: list[Error]


class Detached(Envelope):
    kind: Literal["run"]
    run: str
    detached: Literal[True]


Ran = Run | Detached


class Status(Envelope, StatusBody):
    kind: Literal["status"]
    served: Served | None


class Wait(Envelope, StatusBody):
    """`since`: the events are those after it; null if none were asked for."""

    kind: Literal["wait"]
    served: Served | None
    since: int | None
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


class Lock(Envelope):
    """`path`: the file that is the book's lock."""

    kind: Literal["lock"]
    book: str
    path: str
    names: list[Locked]


class Cancel(Envelope):
    kind: Literal["cancel"]
    cancelled: bool
    run: str | None


class Destroy(Envelope):
    kind: Literal["destroy"]
    book: str
    workspace: str
    steps: list[DestroyStep]


class CacheFolder(TypedDict):
    name: str
    files: int
    bytes: int


class Cache(Envelope):
    """What workspaces share; `removed` says whether it was."""

    kind: Literal["cache"]
    path: str
    folders: list[CacheFolder]
    removed: bool


class Book(TypedDict):
    name: str
    description: str
    steps: list[str]


class List(Envelope):
    kind: Literal["list"]
    books: list[Book]


class Skill(Envelope):
    """`path`: where it was written; None if it was not."""

    kind: Literal["skill"]
    path: str | None
    text: str


class AgentsMd(Envelope):
    kind: Literal["agents-md"]
    path: None
    text: str
