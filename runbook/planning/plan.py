"""What a run would do, and what it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runbook.planning.evaluate import Evaluator
from runbook.planning.planner import INACTIVE, Decision, Selection, considered, decide, foreseen
from runbook.protocol import Work
from runbook.redact import Redactor
from runbook.state.history import RunRecord, last_attempt
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book, Step


def plan(book: Book, workspace: Workspace, selection: Selection, deep: bool) -> dict[str, Any]:
    """What a run would do, without doing it; `later` where that depends on what runs before."""
    workspace.read_index(len(book["steps"]))
    evaluator = Evaluator(book, workspace)
    latest = workspace.latest()
    history = RunRecord(latest).steps if latest is not None else {}
    open_ends: set[str] = set()
    entries = []
    for step in considered(book["steps"], selection):
        name = step["id"]
        work, question = Work().dump(), None
        look = evaluator.look(step, deep)
        if open_ends.intersection(step["needs"]):
            decision = foreseen(evaluator.foresee(step))
            # What does not depend on the outputs of earlier steps can be told beforehand.
            if look.active and look.inputs is not None and not look.check.ok:
                work = look.check.work.dump()
                if step["approve"] is not None:
                    question = evaluator.approval(step, look.check)
        else:
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
                    work = look.check.work.dump()
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
    step: Step, decision: Decision, work: Mapping[str, float], question: str | None
) -> dict[str, Any]:
    return {
        "id": step["id"],
        "uses": step["uses"],
        "decision": decision.verb,
        "reasons": [r.dump() for r in decision.reasons],
        "work": dict(work),
        "approve": question,
    }
