"""`runbook destroy`: undoes steps in reverse, each in a process of its own, with a plan first.

A step is undone from what it was made from, as its records have it: not from what the document
says now, which may name another file, leave the step out or not know it any more.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import runbook
from runbook import logins
from runbook.document.registry import load_step
from runbook.errors import DONE, FAILED
from runbook.execution.attempt import Attempt
from runbook.planning.context import StepContext, default_cache, lock_places, namespace
from runbook.planning.evaluate import Evaluator
from runbook.planning.look import Look
from runbook.planning.planner import require_steps
from runbook.protocol import StepFailure
from runbook.redact import Redactor
from runbook.state.journal import Journal
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book, Step


@dataclass(frozen=True, slots=True)
class Origin:
    """What a step was made from."""

    uses: str
    folder: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """A step that made something, or was about to. Mostly of one origin; of two if an attempt to
    make it of another did not end."""

    id: str
    uses: str
    origins: tuple[Origin, ...]


def plan(book: Book, workspace: Workspace, names: Sequence[str]) -> list[dict[str, Any]]:
    """What would be undone, last step first, with the paths that it says it `creates`: what has a
    record or stands by its check. Steps that are named are undone without either, for something
    may be left of them."""
    recorded = workspace.recorded()
    require_steps(book["steps"], *(name for name in names if name not in recorded))
    return [
        {
            "id": made.id,
            "uses": made.uses,
            "decision": "undo" if any(map(_undoable, made.origins)) else "forget",
            "state": "planned",
            "creates": sorted({name for origin in made.origins for name in _creates(origin)}),
        }
        for made in _made(book, workspace, names)
    ]


def _made(book: Book, workspace: Workspace, names: Sequence[str]) -> Iterator[Made]:
    """The steps to undo (`names`: those alone), in the order in which that is done: first those
    that the document no longer knows, which may stand on any other."""
    recorded = workspace.recorded()
    gone = set(recorded).difference(step["id"] for step in book["steps"])
    for name in sorted(gone, key=lambda step: _when(workspace, step), reverse=True):
        if not names or name in names:
            origins = _origins(workspace, name)
            yield Made(name, origins[0].uses if origins else "", origins)
    looks = _looks(book, workspace)
    for step in reversed(book["steps"]):
        name = step["id"]
        if names and name not in names:
            continue
        origins = _origins(workspace, name)
        look = looks.get(name)
        if look is not None and look.inputs is not None:
            now = Origin(step["uses"], step["folder"], look.inputs)
            # No record has the logins of URLs: those of the document hold if all else is the same.
            written = replace(now, inputs=logins.hidden(look.inputs))
            origins = tuple(now if one == written else one for one in origins) or (now,)
        if name in recorded or names or (look is not None and look.check.ok):
            yield Made(name, step["uses"], origins)


def _when(workspace: Workspace, step: str) -> str:
    """When a step was made, as far as it is recorded."""
    checkpoint = workspace.checkpoint(step)
    return checkpoint["time"] if checkpoint is not None else ""


def _origins(workspace: Workspace, step: str) -> tuple[Origin, ...]:
    """What a step was made from by its records, the latest first; those that tell none are left
    out."""
    records = (workspace.begun.origin(step), workspace.checkpoint(step))
    found = [Origin(r["uses"], r["folder"], r["inputs"]) for r in records if r is not None]
    return tuple(origin for index, origin in enumerate(found) if origin not in found[:index])


def _looks(book: Book, workspace: Workspace) -> dict[str, Look]:
    """A look at each step of which no record tells what it was made from: it may stand all the
    same."""
    evaluator = Evaluator(book, workspace)
    looks = {}
    for step in book["steps"]:
        name = step["id"]
        origins = _origins(workspace, name)
        if origins and all(logins.MASK not in json.dumps(one.inputs) for one in origins):
            checkpoint = workspace.checkpoint(name)
            outputs = checkpoint["outputs"] if checkpoint is not None else {}
        else:
            looks[name] = evaluator.look(step)
            outputs = looks[name].check.outputs
        evaluator.record_outputs(name, outputs)
    return looks


def _creates(origin: Origin) -> Sequence[str]:
    """The paths that a step says it makes."""
    try:
        kind = load_step(origin.uses, Path(origin.folder))
    except StepFailure:
        return ()
    named = getattr(kind, "creates", None)
    return [str(path) for path in named(namespace(origin.inputs))] if named is not None else ()


def _undoable(origin: Origin) -> bool:
    try:
        return hasattr(load_step(origin.uses, Path(origin.folder)), "undo")
    except StepFailure:
        return False


def execute(
    book: Book,
    workspace: Workspace,
    entries: Sequence[dict[str, Any]],
    lock: int,
    listener: Callable[[dict[str, Any]], None] = lambda event: None,
) -> tuple[list[dict[str, Any]], int, dict[str, Any] | None]:
    """Carry out a plan; `listener` is told the events. Stops at the first failure; what was undone
    stays undone."""
    made = {one.id: one for one in _made(book, workspace, [entry["id"] for entry in entries])}
    run = workspace.new_run()
    given = [book["inputs"], *(step["with"] for step in book["steps"])]
    redactor = Redactor(book["secrets"], given)
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
    done: list[dict[str, Any]] = []
    error: dict[str, Any] | None = None
    try:
        for entry in entries:
            name = entry["id"]
            if error is not None:
                done.append({**entry, "state": "skipped"})
                continue
            journal.append("undo.started", step=name)
            for number, origin in enumerate(made[name].origins, 1):
                if error is None and _undoable(origin):
                    look = _look(workspace, book, name, origin)
                    error = redactor.data(_attempt(look, number, run, workspace, lock))
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


def _look(workspace: Workspace, book: Book, name: str, origin: Origin) -> Look:
    """What an attempt needs to know of a step."""
    step = {"id": name, "uses": origin.uses, "folder": origin.folder}
    look = Look(cast("Step", step))
    look.inputs = dict(origin.inputs)
    look.context = StepContext(
        name,
        namespace(origin.inputs),
        workspace.root,
        default_cache(),
        secrets=frozenset(book["secrets"]),
        uses=origin.uses,
        locks=lock_places(book["source"], workspace.root),
    )
    return look


def _attempt(
    look: Look, number: int, run: Path, workspace: Workspace, lock: int
) -> dict[str, Any] | None:
    """Undo one step; the error, if it failed."""
    attempt = Attempt(look, number, run, workspace, lock, action="undo")
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
