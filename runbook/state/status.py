"""What is recorded of a workspace. Reads files only: quick enough to ask again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbook.process import Identity, of_attempts
from runbook.state import journal
from runbook.state.history import RunRecord
from runbook.state.workspace import Workspace


def status(book: Mapping[str, Any], workspace: Workspace) -> dict[str, Any]:
    """What is recorded of each step, and whether it is going on now. Asks no step's check."""
    workspace.read_index(len(book["steps"]))
    run = latest_run(workspace)
    state = run_state(workspace, run)
    entries = [_status_entry(step, workspace, run, state) for step in book["steps"]]
    served = [e for e in entries if e["endpoint"] and e["state"] == "satisfied"]
    return {
        "book": book["name"],
        "workspace": str(workspace.root),
        "run": run_data(run, state),
        "steps": entries,
        "endpoint": served[-1]["endpoint"] if served else None,
        "errors": run.errors if run is not None and state == "finished" else [],
    }


def latest_run(workspace: Workspace) -> RunRecord | None:
    latest = workspace.latest()
    return RunRecord(latest) if latest is not None else None


def run_state(workspace: Workspace, run: RunRecord | None) -> str:
    """none, running, orphaned (what it started outlived it), interrupted or finished."""
    if run is None:
        return "none"
    supervisor, holder = workspace.supervisor()
    if holder == run.id and workspace.locked():
        return "running" if supervisor is not None and supervisor.alive() else "orphaned"
    if run.finished:
        return "finished"
    return "orphaned" if of_attempts(workspace.state) else "interrupted"


def going_on(workspace: Workspace) -> bool:
    """Whether a run works, or what it left behind."""
    if workspace.locked():
        return True
    latest = workspace.latest()
    if latest is None or journal.end(latest) is not None:
        return False
    return bool(of_attempts(workspace.state))


def run_data(run: RunRecord | None, state: str) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "id": run.id,
        "state": state,
        "started": run.started,
        "finished": run.finished or None,
        "exit_code": run.exit_code,
        "seq": run.last_seq,
    }


def _status_entry(
    step: Mapping[str, Any], workspace: Workspace, run: RunRecord | None, run_is: str
) -> dict[str, Any]:
    name = step["id"]
    record = run.steps.get(name) if run is not None else None
    checkpoint = workspace.checkpoint(name)
    outputs = checkpoint["outputs"] if checkpoint is not None else {}
    entry: dict[str, Any] = {
        "id": name,
        "uses": step["uses"],
        "state": "never_ran",
        "since": None,
        "seconds": checkpoint["seconds"] if checkpoint is not None else None,
        "attempt": None,
        "progress": None,
        "error": None,
        "log": None,
        "question": None,
        "endpoint": outputs.get("endpoint"),
    }
    if record is not None and record.state not in ("satisfied", "undone", "pending"):
        state = record.state
        if state in ("running", "retrying") and run_is != "running":
            state = "orphaned" if run_is == "orphaned" else "interrupted"
        entry.update(
            state=state,
            since=record.since,
            attempt=record.attempt or None,
            progress=record.progress,
            error=record.error,
            log=record.log or None,
            question=record.question or None,
        )
    elif checkpoint is not None:
        entry.update(state="satisfied", since=checkpoint["time"])
        process = outputs.get("process")
        service = Identity.load(process) if process is not None else None
        if service is not None and not service.alive():
            from runbook.state import logs  # what was served is found dead but rarely

            entry.update(state="stopped", error=logs.ended(step["uses"], outputs))
    elif run_is == "running" and record is not None and record.state == "pending":
        entry.update(state="pending", since=record.since)
    return entry
