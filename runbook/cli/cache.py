"""`runbook cache`: what the workspaces of a user share, and removing it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from runbook import errors, units
from runbook.cli import envelope, terminal
from runbook.cli.form import Form, options
from runbook.cli.sizes import size_of
from runbook.errors import RunbookError, error_dict
from runbook.planning.context import default_cache

CLEAN = "runbook cache clean --yes"


@click.command()
@click.argument("action", type=click.Choice(["show", "clean"]), default="show", metavar="[clean]")
@click.option("--yes", is_flag=True, help="Remove; without this, `clean` only says what it would.")
@options
def cache(action: str, yes: bool, form: Form) -> int:
    """Show what workspaces share (RUNBOOK_CACHE); `clean` removes it.

    What is removed is downloaded or made anew by the steps that need it.
    """
    root = default_cache()
    folders = _folders(root)
    code, error, following = errors.DONE, None, [CLEAN]
    if action == "clean" and folders:
        if yes:
            _refuse_if_used(root)
            for folder in folders:
                _remove(root / folder["name"])
            following = []
        else:
            code = errors.APPROVAL
            error = error_dict("approval", f"would remove {_total(folders)}", remedy=CLEAN)
    removed = action == "clean" and yes
    body = {"path": str(root), "folders": folders, "removed": removed}
    ok = code == errors.DONE
    answer = envelope.document("cache", ok, body, error=error, next=following)
    envelope.print_answer(answer, form, _human)
    return code


def _folders(root: Path) -> list[dict[str, Any]]:
    found = []
    for name in sorted(os.listdir(root)) if root.is_dir() else []:
        files, count = size_of(root / name)
        found.append({"name": name, "files": files, "bytes": count})
    return found


def _total(folders: list[dict[str, Any]]) -> str:
    return units.size(sum(folder["bytes"] for folder in folders))


def _refuse_if_used(root: Path) -> None:
    """Raise if a step holds one of the cache's locks."""
    for path in (root / "locks").rglob("*") if (root / "locks").is_dir() else []:
        if path.is_file():
            with open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RunbookError(
                        f"{root} is in use",
                        code="cache_in_use",
                        exit_code=errors.LOCKED,
                        cause=f"a step holds {path}",
                        remedy="try again when the run that it belongs to has ended",
                        retryable=True,
                    ) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _human(answer: Mapping[str, Any]) -> str:
    folders = answer["folders"]
    if not folders:
        return f"{answer['path']}  empty"
    rows = [(f["name"], units.size(f["bytes"]), f"{f['files']} files") for f in folders]
    said = "removed" if answer["removed"] else "in all"
    return "\n".join([answer["path"], terminal.table(rows, key=-1), f"{said}: {_total(folders)}"])
