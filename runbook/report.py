"""The documents that verbs answer with: plain data, one shape each, for `--json` and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runbook.evaluate import Evaluator
from runbook.executor import reason_data, work_data
from runbook.history import RunRecord, last_attempt
from runbook.planner import INACTIVE, UPSTREAM, Decision, Selection, decide
from runbook.process import Identity
from runbook.protocol import Check
from runbook.redact import Redactor
from runbook.state import SCHEMA, Workspace

NOTHING = Check(False)


def document(
    kind: str,
    ok: bool,
    body: Mapping[str, Any] | None = None,
    *,
    error: Mapping[str, Any] | None = None,
    next: Sequence[str] = (),
) -> dict[str, Any]:
    """The envelope of every answer."""
    answer: dict[str, Any] = {"schema": SCHEMA, "kind": kind, "ok": ok, **(body or {})}
    if error is not None:
        answer["error"] = dict(error)
    answer["next"] = list(next)
    return answer


def plan(
    book: Mapping[str, Any], workspace: Workspace, selection: Selection, deep: bool
) -> dict[str, Any]:
    """What a run would do, without doing it; `later` where that depends on what runs before."""
    evaluator = Evaluator(book, workspace, deep)
    latest = workspace.latest()
    history = RunRecord(latest).steps if latest is not None else {}
    wanted = set(selection.runnable)
    for step in reversed(book["steps"]):
        if step["id"] in wanted:
            wanted.update(step["needs"])
    open_ends: set[str] = set()
    entries = []
    for step in book["steps"]:
        name = step["id"]
        if name not in wanted:
            continue
        work, question = work_data(NOTHING), None
        if open_ends.intersection(step["needs"]):
            decision = UPSTREAM
        else:
            look = evaluator.look(step)
            if not look.active:
                decision = INACTIVE
                evaluator.record_outputs(name, {})
            else:
                decision = decide(
                    look.view(
                        forced=name in selection.forced,
                        runnable=name in selection.runnable,
                        last_attempt=last_attempt(history.get(name)),
                    )
                )
                if decision.verb in ("skip", "adopt"):
                    evaluator.record_outputs(name, look.check.outputs)
                else:
                    work = work_data(look.check)
                    if decision.verb == "run" and step["approve"] is not None and look.inputs:
                        question = evaluator.approval(step, look.check)
        if decision.verb in ("run", "later", "unmet"):
            open_ends.add(name)
        entries.append(_plan_entry(step, decision, work, question))
    totals = {key: sum(entry["work"][key] for entry in entries) for key in ("bytes", "seconds")}
    totals["disk"] = sum(entry["work"]["disk"] for entry in entries)
    body = {
        "book": book["name"],
        "workspace": str(workspace.root),
        "steps": entries,
        "work": totals,
        "would_run": any(entry["decision"] in ("run", "later", "adopt") for entry in entries),
    }
    return dict(Redactor(book["secrets"]).data(body))


def _plan_entry(
    step: Mapping[str, Any], decision: Decision, work: Mapping[str, float], question: str | None
) -> dict[str, Any]:
    return {
        "id": step["id"],
        "uses": step["uses"],
        "decision": decision.verb,
        "reasons": [reason_data(r) for r in decision.reasons],
        "work": dict(work),
        "approve": question,
    }


def status(book: Mapping[str, Any], workspace: Workspace) -> dict[str, Any]:
    """What is recorded of each step, and whether it is going on now. Asks no step's check."""
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
    }


def latest_run(workspace: Workspace) -> RunRecord | None:
    latest = workspace.latest()
    return RunRecord(latest) if latest is not None else None


def run_state(workspace: Workspace, run: RunRecord | None) -> str:
    """none, running, orphaned (a worker outlived its supervisor), interrupted or finished."""
    if run is None:
        return "none"
    supervisor, holder = workspace.supervisor()
    if holder == run.id and workspace.locked():
        return "running" if supervisor is not None and supervisor.alive() else "orphaned"
    return "finished" if run.finished else "interrupted"


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
            state = run_is if run_is in ("orphaned", "interrupted") else "interrupted"
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
            entry["state"] = "stopped"
    elif run_is == "running" and record is not None and record.state == "pending":
        entry.update(state="pending", since=record.since)
    return entry
