"""The verb `lock`: what names that move are, kept beside the document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from runbook import errors
from runbook.cli import terminal
from runbook.cli.options import verb
from runbook.cli.target import Target
from runbook.remedy import Remedy


@click.command()
@verb("lock")
@click.option("--upgrade", is_flag=True, help="Resolve anew what the lock has already.")
def lock(target: Target, steps: tuple[str, ...], upgrade: bool) -> int:
    """Keep what names that move are now, as branches do, in a file beside the document."""
    from runbook.planning import locking
    from runbook.planning.context import lock_places
    from runbook.planning.lockfile import Lockfile

    names, found, failure = locking.resolve(target.book, target.workspace, steps, upgrade)
    held = Lockfile(*lock_places(target.book["source"], target.workspace.root))
    path = held.put(found) if found else held.where(next((n["name"] for n in names), ""))
    body = {"book": target.book["name"], "path": str(path), "names": names}
    error = failure.error_dict() if failure is not None else None
    follow = Remedy("lock", (*steps,)) if failure is not None else Remedy("plan")
    target.say(target.answer(failure is None, body, error=error, next=[follow]), _said)
    return errors.DONE if failure is None else failure.exit_code


def _said(answer: Mapping[str, Any]) -> str:
    rows = []
    for entry in answer["names"]:
        if entry["unresolved"]:
            rows.append((entry["step"], "unknown", entry["unresolved"]))
            continue
        if entry["before"] is None:
            state = "new"
        elif entry["before"] == entry["value"]:
            state = "as before"
        else:
            state = "changed"
        was = f", was {entry['before']}" if state == "changed" else ""
        what = f"{entry['name']} is {entry['value']}{was}"
        rows.append((entry["step"], state, what))
    if not rows:
        return "no step of this book has a name that moves"
    return "\n".join([answer["path"], terminal.table(rows)])
