"""What a run would do, and what it would cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runbook.planning.evaluate import Evaluator
from runbook.planning.look import Look
from runbook.planning.planner import (
    EARLIER,
    INACTIVE,
    LATER,
    Decision,
    Selection,
    considered,
    decide,
    foreseen,
)
from runbook.protocol import Check, StepFailure, Work
from runbook.redact import Redactor
from runbook.state.history import LastRun
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book, Step


def plan(book: Book, workspace: Workspace, selection: Selection, deep: bool) -> dict[str, Any]:
    """What a run would do, without doing it; `later` where that depends on what runs before."""
    workspace.read_index(len(book["steps"]))
    evaluator = Evaluator(book, workspace)
    before = LastRun(workspace)
    open_ends: set[str] = set()
    entries = []
    for step in considered(book["steps"], selection):
        name = step["id"]
        work, question, unknown = Work().dump(), None, None
        look = evaluator.look(step, deep)
        if open_ends.intersection(step["needs"]):
            decision = foreseen(evaluator.foresee(step))
            # What does not depend on the outputs of earlier steps can be told beforehand.
            if look.active and not look.check.ok:
                work, unknown = look.check.work.dump(), _unknown(step, look)
                question = _question(evaluator, step, look.check)
        else:
            if not look.active:
                decision = INACTIVE
                evaluator.record_outputs(name, {})
            else:
                decision = decide(
                    look.view(
                        forced=name in selection.forced,
                        runnable=name in selection.runnable,
                        last_attempt="" if look.check.ok else before.attempt(name),
                    )
                )
                if decision.verb in ("skip", "adopt"):
                    evaluator.record_outputs(name, look.check.outputs, look.recorded_digest())
                else:
                    work = look.check.work.dump()
                    unknown = _unknown(step, look)
                    if decision.verb == "run" and step["approve"] is not None and look.inputs:
                        question = evaluator.approval(step, look.check.work)
        if decision.verb in ("run", "later", "unmet"):
            open_ends.add(name)
        entry = _plan_entry(step, decision, work, question, unknown)
        if decision.verb == "run":
            remarks = (r for r in look.check.reasons if r.severity != "error")
            entry["reasons"] += [r.dump() for r in remarks]
        entries.append(entry)
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


def _unknown(step: Step, look: Look) -> str | None:
    """Why the cost of a step that is to run cannot be told; None if it can. A step that asks
    whether it may cost something, and says that it costs nothing, could not find out."""
    if look.inputs is None:
        return LATER
    asks_for_work = step["approve"] is not None and "check.work" in json.dumps(step["approve"])
    return "it could not find out" if asks_for_work and look.check.work == Work() else None


def _question(evaluator: Evaluator, step: Step, check: Check) -> str | None:
    """What a step asks that is decided later, as far as it can be told."""
    if step["approve"] is None:
        return None
    try:
        return evaluator.approval(step, check.work)
    except StepFailure:
        return f"It asks for approval; what, is known when {EARLIER}"


def _plan_entry(
    step: Step,
    decision: Decision,
    work: Mapping[str, float],
    question: str | None,
    unknown: str | None,
) -> dict[str, Any]:
    return {
        "id": step["id"],
        "uses": step["uses"],
        "decision": decision.verb,
        "reasons": [r.dump() for r in decision.reasons],
        "work": dict(work),
        "approve": question,
        "unknown": unknown,
    }
