"""The verbs that end a run, or undo what runs made: cancel, destroy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import click

from runbook import errors
from runbook.cli import sizes
from runbook.cli.options import verb
from runbook.cli.target import Target
from runbook.errors import error_dict
from runbook.remedy import Remedy


@click.command()
@verb("cancel")
def cancel(target: Target) -> None:
    """End the run that is going on, and everything it started."""
    from runbook.execution.cancel import cancel as end

    body = end(target.workspace)
    target.say(
        target.answer(True, body, next=[Remedy("run")]),
        lambda a: f"cancelled run {a['run']}" if a["cancelled"] else "no run is going on",
    )


@click.command()
@verb("destroy")
@click.option("--yes", is_flag=True, help="Do it; without this, only the plan is shown.")
def destroy(target: Target, steps: tuple[str, ...], yes: bool) -> int:
    """Undo steps, last first. Shows its plan; `--yes` carries it out."""
    from runbook.cli import human
    from runbook.execution import holding, undo

    entries = undo.plan(target.book, target.workspace, steps)
    paths = {
        entry["id"]: sizes.made(target.workspace, entry["id"], entry.pop("creates"))
        for entry in entries
    }
    error: dict[str, Any] | None = None
    follow = Remedy("status")
    code = errors.DONE
    if entries and not yes:
        code = errors.APPROVAL
        follow = Remedy("destroy", (*steps, "--yes"))
        undone = ", ".join(e["id"] for e in entries if e["decision"] == "undo")
        error = error_dict("approval", f"would undo {undone}", remedy=follow)
    elif entries:
        lock = holding.hold(target.workspace)
        entries, code, error = undo.execute(
            target.book, target.workspace, entries, lock, _listener(target, entries)
        )
        for path in chain.from_iterable(paths.values()):
            path["stays"] = path["stays"] and os.path.lexists(path["path"])
    body = {
        "book": target.book["name"],
        "workspace": str(target.workspace.root),
        "steps": [{**entry, "paths": paths[entry["id"]]} for entry in entries],
    }
    target.say(target.answer(code == errors.DONE, body, error=error, next=[follow]), human.undone)
    return code


def _listener(
    target: Target, entries: Sequence[Mapping[str, Any]]
) -> Callable[[dict[str, Any]], None]:
    """Tells people of each step as it is undone."""
    if target.as_json:
        return lambda event: None
    from runbook.cli.progress import Lines

    lines = Lines(max(len(entry["id"]) for entry in entries))
    lines.flush = True
    return lines.event
