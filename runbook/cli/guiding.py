"""The verbs that tell coding agents how to drive this program: skill, agents-md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runbook import errors
from runbook.cli import envelope, terminal
from runbook.cli.form import Form, options
from runbook.cli.options import verb
from runbook.cli.target import Target
from runbook.errors import RunbookError
from runbook.remedy import Remedy


@click.command()
@click.option("--install", is_flag=True, help="Write it where agents look in this folder.")
@options
def skill(install: bool, form: Form) -> None:
    """Print the skill that teaches a coding agent this program."""
    from runbook.cli import guide

    text = guide.skill()
    path = str(_install(guide.SKILL, text)) if install else None
    body: dict[str, Any] = {"path": path, "text": text}
    answer = envelope.document("skill", True, body, next=["runbook list"])
    _tell(answer, form)


@click.command("agents-md")
@verb("agents-md")
def agents_md(target: Target) -> None:
    """Print an AGENTS.md for BOOK: its inputs and steps, and how an agent drives it."""
    from runbook.cli import guide

    named = target.given.book or Path(target.book["source"]).name
    text = guide.agents_md(target.book, named)
    body = {"path": None, "text": text}
    _tell(target.answer(True, body, next=[Remedy("plan")]), target.form)


def _tell(answer: dict[str, Any], form: Form) -> None:
    """Print what is to be read as it stands, for agents too; of what was written the place."""
    if form == "json" or (answer["path"] and form == "brief"):
        envelope.print_answer(answer, form, str)
    else:
        terminal.say(answer["path"] or answer["text"].rstrip("\n"))


def _install(place: Path, text: str) -> Path:
    """Write the skill into the current folder; one that is not ours stays."""
    from runbook.files import write_atomic

    path = Path.cwd() / place
    if path.exists() or path.is_symlink():
        old = path.read_text(errors="replace") if path.is_file() else ""
        if "\n  runbook-version: " not in old:
            raise RunbookError(
                f"{path} is there and is not of this program",
                code="skill_exists",
                exit_code=errors.PRECONDITION,
                cause="its front matter names no `runbook-version`",
                remedy="move it away, or give it the text that `runbook skill` prints",
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
    return path
