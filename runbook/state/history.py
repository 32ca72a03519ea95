"""What the journal of a run says of each step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from runbook.state import journal

if TYPE_CHECKING:
    from runbook.state.workspace import Workspace

Ended: TypeAlias = Literal["", "interrupted", "failed"]


class StepRecord:
    """The last that is known of a step: a state, since when, and its details."""

    __slots__ = ("attempt", "error", "log", "process", "progress", "question", "since", "state")

    def __init__(self, state: str, since: str = "") -> None:
        self.state = state
        self.since = since
        self.attempt = 0
        self.log = ""
        self.process: dict[str, Any] | None = None
        self.progress: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.question = ""


class RunRecord:
    """A run folded from its events."""

    __slots__ = ("errors", "exit_code", "finished", "id", "last_seq", "result", "started", "steps")

    def __init__(self, run: Path) -> None:
        self.id = run.name
        self.started = ""
        self.finished = ""
        self.exit_code: int | None = None
        self.result: dict[str, Any] | None = None
        self.errors: list[dict[str, Any]] = []
        self.last_seq = 0
        self.steps: dict[str, StepRecord] = {}
        for event in journal.read(run, thin=True):
            self._fold(event)

    def _fold(self, event: dict[str, Any]) -> None:
        kind, time = event["type"], event["time"]
        self.last_seq = event["seq"]
        if kind == "run.started":
            self.started = time
            return
        if kind == "run.carried":
            for step, state in event["steps"].items():
                if step in self.steps:
                    continue
                self.steps[step] = StepRecord(state["state"], state["since"])
                self.steps[step].error = state.get("error")
                self.steps[step].log = state.get("log", "")
            return
        if kind == "run.finished":
            self.finished = time
            self.exit_code = event["exit_code"]
            self.result = event.get("error")
            self.errors = event.get("errors", [])
            return
        if "step" not in event:
            return
        record = self.steps.get(event["step"])
        if record is None:
            record = self.steps[event["step"]] = StepRecord("pending", time)
        if kind == "attempt.started":
            record.state, record.since = "running", time
            record.attempt = event["attempt"]
            record.log = event["log"]
            record.process = event.get("process")
            record.progress = record.error = None
        elif kind == "attempt.progress":
            record.progress = {key: event.get(key) for key in ("done", "total", "unit", "message")}
            record.progress["items"] = event.get("items", [])
        elif kind == "attempt.failed":
            record.state, record.since = "failed", time
            record.error = event["error"]
            record.progress = None
            if event["error"]["code"] == "cancelled":
                record.state = "cancelled"
        elif kind in ("attempt.succeeded", "step.satisfied"):
            record.state, record.since = "satisfied", time
            record.error = record.progress = None
        elif kind == "step.waiting":
            record.state, record.since = event["state"], time
            record.question = event.get("question", "")
        elif kind == "step.approved":
            for other in self.steps.values():
                if other is record or other.state == "blocked":  # to be decided anew
                    other.state, other.since, other.question = "pending", time, ""
        elif kind == "step.blocked":
            record.state, record.since = "blocked", time
        elif kind == "undo.finished":
            record.state, record.since = "undone", time

    def unfinished(self) -> dict[str, dict[str, Any]]:
        """The steps whose last attempt did not succeed; a later run carries them on."""
        carried = {}
        for step, record in self.steps.items():
            state = last_attempt(record)
            if state:
                carried[step] = {
                    "state": state,
                    "since": record.since,
                    "error": record.error,
                    "log": record.log,
                }
        return carried


class LastRun:
    """What the latest run of a workspace says. It is read when that is first asked for: a run that
    does nothing need not know."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._steps: dict[str, StepRecord] | None = None

    def attempt(self, step: str) -> Ended:
        """How the last attempt at a step ended, as `last_attempt` has it."""
        if self._steps is None:
            latest = self._workspace.latest()
            self._steps = RunRecord(latest).steps if latest is not None else {}
        return last_attempt(self._steps.get(step))


def last_attempt(record: StepRecord | None) -> Ended:
    """`interrupted`, `failed`, or "" when the last attempt succeeded or there was none."""
    if record is None:
        return ""
    if record.state in ("running", "interrupted", "cancelled"):
        return "interrupted"
    if record.state in ("failed", "retrying"):
        return "failed"
    return ""
