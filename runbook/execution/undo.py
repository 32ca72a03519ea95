"""`runbook destroy`: undoes steps in reverse, each in a process of its own, with a plan first."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import runbook
from runbook.errors import DONE, FAILED
from runbook.execution.attempt import Attempt
from runbook.planning.evaluate import Evaluator, Look
from runbook.planning.planner import require_steps
from runbook.redact import Redactor
from runbook.state.journal import Journal
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book, Step


def plan(book: Book, workspace: Workspace, names: Sequence[str]) -> list[dict[str, Any]]:
    """What would be undone, last step first: what has a checkpoint or stands by its check."""
    require_steps(book["steps"], *names)
    entries = []
    for step, look in _look(book, workspace):
        if names and step["id"] not in names:
            continue
        there = look.checkpoint is not None or look.begun is not None or look.check.ok
        if not there and step["id"] not in names:
            continue
        can = look.inputs is not None and hasattr(Evaluator(book, workspace).kind(step)[0], "undo")
        entries.append(
            {
                "id": step["id"],
                "uses": step["uses"],
                "decision": "undo" if can else "forget",
                "state": "planned",
            }
        )
    return entries[::-1]


def _look(book: Book, workspace: Workspace) -> list[tuple[Step, Look]]:
    evaluator = Evaluator(book, workspace)
    looks = []
    for step in book["steps"]:
        look = evaluator.look(step)
        recorded = look.checkpoint["outputs"] if look.checkpoint is not None else {}
        evaluator.record_outputs(step["id"], look.check.outputs if look.check.ok else recorded)
        if look.inputs is None and look.checkpoint is not None:
            # What it was made from is enough to unmake it.
            look.inputs = dict(look.checkpoint["inputs"])
        looks.append((step, look))
    return looks


def execute(
    book: Book,
    workspace: Workspace,
    entries: Sequence[dict[str, Any]],
    lock: int,
    listener: Callable[[dict[str, Any]], None] = lambda event: None,
) -> tuple[list[dict[str, Any]], int, dict[str, Any] | None]:
    """Carry out a plan. Stops at the first failure; what was undone stays undone."""
    run = workspace.new_run()
    redactor = Redactor(book["secrets"])
    journal = Journal(redactor, listener)
    journal.open(run)
    journal.append(
        "run.started",
        book=book["name"],
        source=book["source"],
        inputs=book["inputs"],
        workspace=str(workspace.root),
        package=runbook.__version__,
        runnable=[],
        forced=[],
    )
    workspace.point_latest(run)
    workspace.claim(lock, run.name)
    looks = {step["id"]: look for step, look in _look(book, workspace)}
    done: list[dict[str, Any]] = []
    error: dict[str, Any] | None = None
    try:
        for entry in entries:
            name = entry["id"]
            if error is not None:
                done.append({**entry, "state": "skipped"})
                continue
            journal.append("undo.started", step=name)
            if entry["decision"] == "undo":
                error = redactor.data(_attempt(looks[name], run, workspace, lock))
            if error is not None:
                journal.append("undo.failed", step=name, error=error)
                done.append({**entry, "state": "failed"})
                continue
            workspace.remove_checkpoint(name)
            journal.append("undo.finished", step=name)
            done.append({**entry, "state": "undone"})
        code = DONE if error is None else FAILED
        journal.append("run.finished", exit_code=code, ok=code == DONE, error=error)
    finally:
        journal.close()
        os.close(lock)
    return done, code, error


def _attempt(look: Look, run: Any, workspace: Workspace, lock: int) -> dict[str, Any] | None:
    """Undo one step; the error, if it failed."""
    attempt = Attempt(look, 1, run, workspace, lock, action="undo")
    try:
        ended = False
        while not ended:
            select.select([attempt.events], [], [])
            _, ended = attempt.messages()
    except BaseException:
        attempt.stop()
        raise
    attempt.finish()
    if attempt.result is not None and attempt.result["type"] == "result":
        return None
    return {**attempt.failure(), "step": attempt.step}
