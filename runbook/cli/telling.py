"""The verbs that tell of the program itself: list, schema, completion, mcp."""

from __future__ import annotations

import os
from typing import Any

import click

from runbook import errors
from runbook.cli import envelope, shell
from runbook.cli.form import Form, options
from runbook.document.compile import compile_book, shipped_books
from runbook.errors import RunbookError
from runbook.planning.context import default_cache


@click.command()
@options
def list_books(form: Form) -> None:
    """List the shipped books."""
    from runbook.cli import terminal

    books: list[dict[str, Any]] = []
    for name in shipped_books():
        cache = default_cache() / "compiled"
        book = compile_book(name, (), cache, os.environ, require_inputs=False)
        steps = [step["id"] for step in book["steps"]]
        books.append({"name": name, "description": book["description"], "steps": steps})
    following = [shell.join(["runbook", "plan", book["name"]]) for book in books]
    answer = envelope.document("list", True, {"books": books}, next=following)
    rows = [(book["name"], "", book["description"]) for book in books]
    envelope.print_answer(answer, form, lambda a: terminal.table(rows))


@click.command()
@click.argument("kind", default="runbook", metavar="[VERB]")
@click.option("--json", "as_json", is_flag=True, help="Accepted for uniformity.")
@click.option("--brief", is_flag=True, help="Of the answer's brief form.")
def schema(kind: str, as_json: bool, brief: bool) -> None:
    """Print the JSON schema of the document, or of a verb's answer."""
    import json
    from importlib.resources import files

    from runbook.cli.brief import relaxed

    folder = files("runbook") / "schemas"
    known = sorted(item.name.removesuffix(".schema.json") for item in folder.iterdir())
    if kind not in known:
        raise RunbookError(
            f"there is no schema `{kind}`",
            code="unknown_schema",
            exit_code=errors.USAGE,
            remedy="the schemas are: " + ", ".join(known),
        )
    text = (folder / f"{kind}.schema.json").read_text()
    print(json.dumps(relaxed(json.loads(text)), indent=1) if brief else text.rstrip("\n"))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="SHELL")
def completion(shell: str) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    group = click.get_current_context().find_root().command
    print(found(group, {}, "runbook", "_RUNBOOK_COMPLETE").source())


@click.command()
def mcp() -> None:
    """Serve the verbs as tools of the Model Context Protocol, over standard input and output."""
    import importlib.util

    if importlib.util.find_spec("mcp") is None:
        raise RunbookError(
            "the package mcp is not installed",
            code="extra_missing",
            exit_code=errors.PRECONDITION,
            cause="it comes with the extra `mcp` only",
            remedy="install runbook with it: `pip install 'runbook[mcp]'`",
        )
    from runbook.cli.mcp import serve

    serve()
