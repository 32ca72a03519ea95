"""The shape of every `--json` answer, and of every event. The committed schemas are made of it:
`make schema` writes them, a test compares. Readers ignore fields that they do not know."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

Schema = Literal["runbook/1"]
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


class PlanStep(TypedDict):
    id: str
    uses: str
    decision: DecisionVerb
    reasons: list[Reason]
    work: Work
    approve: str | None


class Plan(Envelope):
    kind: Literal["plan"]
    book: str
    workspace: str
    steps: list[PlanStep]
    work: Work
    would_run: bool


class CheckStep(TypedDict):
    id: str
    uses: str
    state: Literal["satisfied", "unmet", "unknown", "inactive"]
    reasons: list[Reason]
    work: Work
    seconds: float


class Check(Envelope):
    """`unknown`: cannot be told before the steps that it depends on hold."""

    kind: Literal["check"]
    book: str
    workspace: str
    deep: bool
    steps: list[CheckStep]


class RunStep(TypedDict):
    id: str
    state: State
    decision: DecisionVerb
    reasons: list[Reason]
    seconds: NotRequired[float]
    question: NotRequired[str]
    error: NotRequired[Error]
    exit_code: NotRequired[int]


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


class Status(Envelope):
    kind: Literal["status"]
    book: str
    workspace: str
    run: RunSummary | None
    steps: list[StatusStep]
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


class Wait(Envelope):
    kind: Literal["wait"]
    book: str
    workspace: str
    run: RunSummary | None
    steps: list[StatusStep]
    endpoint: str | None
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


class Events(Envelope):
    kind: Literal["events"]
    run: RunSummary | None
    events: list[Event]
    seq: int


class Cancel(Envelope):
    kind: Literal["cancel"]
    cancelled: bool
    run: str | None


class DestroyStep(TypedDict):
    id: str
    uses: str
    decision: Literal["undo", "forget"]
    state: Literal["planned", "undone", "failed", "skipped"]


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


class Finding(TypedDict):
    """One fault of a checkpoint, with its severity for the target asked for and for each known."""

    id: str
    severity: Literal["error", "warning", "info"]
    detail: str
    tensors: list[str]
    tensor_count: int
    consequence: str
    remedy: str
    severities: dict[str, str]


class Scales(TypedDict):
    """Of how many tensors of scales how many were looked at, and what share of all their bytes."""

    tensors: int
    examined: int
    share: float


class Lint(Envelope):
    kind: Literal["lint"]
    checkpoint: str
    target: str
    series: str
    errors: int
    warnings: int
    infos: int
    findings: list[Finding]
    scales: Scales


class PatchedFile(TypedDict):
    """A touched file, with the SHA-256 before and after; None where it is not there, or unknown."""

    path: str
    before: str | None
    after: str | None


class Patch(TypedDict):
    target: str
    id: str
    title: str
    state: Literal["absent", "applied", "conflicting", "not_needed"] | None
    conflict: str | None
    source: str | None
    why: str
    symptom: str
    upstream: str
    version: str
    file: str
    files: list[PatchedFile]


class Patches(Envelope):
    kind: Literal["patches"]
    patches: list[Patch]


ANSWERS: dict[str, Any] = {
    "validate": Validate | Refusal,
    "plan": Plan | Refusal,
    "check": Check | Refusal,
    "run": Run | Detached | Refusal,
    "status": Status | Refusal,
    "wait": Wait | Refusal,
    "logs": Logs | Refusal,
    "events": Events | Refusal,
    "cancel": Cancel | Refusal,
    "destroy": Destroy | Refusal,
    "list": List | Refusal,
    "lint": Lint | Refusal,
    "patches": Patches | Refusal,
    "event": Event,
}


def schemas() -> dict[str, str]:
    """The schema of each answer as JSON text, by the name of its verb."""
    import json

    from pydantic import TypeAdapter

    found = {}
    for name, shape in ANSWERS.items():
        schema = TypeAdapter(shape).json_schema()
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        found[name] = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
    return found


def main() -> None:
    from pathlib import Path

    for name, text in schemas().items():
        (Path(__file__).parents[1] / "schemas" / f"{name}.schema.json").write_text(text)


if __name__ == "__main__":
    main()
