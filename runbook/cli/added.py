"""The verbs that steps add: made of their table, which says what they take and who answers."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Mapping
from typing import Any

import click

from runbook import errors
from runbook.cli import completing, envelope
from runbook.cli.options import JSON
from runbook.errors import Failure
from runbook.planning.context import default_cache


def command(name: str) -> click.Command:
    """The click command of a verb in `runbook.steps.VERBS`."""
    told = importlib.import_module("runbook.steps").VERBS[name]

    @JSON
    def call(as_json: bool, **given: Any) -> int:
        if told.get("book"):
            given["book"] = _known(given["book"])
        module, _, function = told["answers"].partition(":")
        answers = getattr(importlib.import_module(module), function)
        try:
            said = answers(cache=default_cache(), **given)
        except Failure as problem:
            raise _no_step(problem, told) from problem
        _print(name, said, as_json)
        return errors.DONE if said.get("error") is None else errors.PRECONDITION

    if told.get("book"):
        call = click.argument("book", required=False, shell_complete=completing.books)(call)
    for parameter in told["takes"]:
        call = _parameter(dict(parameter))(call)
    return click.command(name, help=told["help"])(call)


def _no_step(problem: Failure, told: Mapping[str, Any]) -> Failure:
    """A failure of a verb that runs no step: of its usage if the table names its code, with what to
    do about the option; else of a precondition."""
    usage = told.get("usage", {})
    if problem.code in usage:
        problem.exit_code = errors.USAGE
        problem.remedy = usage[problem.code] or problem.remedy
    elif problem.exit_code == errors.FAILED:
        problem.exit_code = errors.PRECONDITION
    return problem


def _known(book: str | None) -> dict[str, Any]:
    """What is known of a book's steps before any of them has run."""
    from runbook.document import template
    from runbook.document.compile import compile_book

    compiled = compile_book(
        book, [], default_cache() / "compiled", os.environ, require_inputs=False
    )
    scope = {"inputs": compiled["inputs"], "steps": {}, "facts": {}}
    steps = [
        {"id": s["id"], "uses": s["uses"], "with": template.known(s["with"], scope)[0]}
        for s in compiled["steps"]
    ]
    return {"name": compiled["name"], "steps": steps}


def _parameter(told: dict[str, Any]) -> Any:
    """An option or argument of click, of its description."""
    name = told.pop("name")
    if not name.startswith("--"):
        return click.argument(name, **told)
    return click.option(name, show_default="default" in told, **told)


def _print(name: str, said: Mapping[str, Any], as_json: bool) -> None:
    from runbook.cli import terminal
    from runbook.cli.remedies import Renderer

    renderer = Renderer(lambda *words: shlex.join(["runbook", *words]))
    document = envelope.document(
        name,
        said.get("error") is None,
        said["body"],
        error=said.get("error"),
        next=[line for one in said.get("next", ()) if (line := renderer.command(one))],
    )
    answer = renderer.complete(document)
    if as_json:
        envelope.print_json(answer)
        return
    text = said.get("text")
    if text is not None:
        terminal.say("\n".join(terminal.hanging(line, 2) for line in text.split("\n")))
        return
    terminal.say(terminal.table(said["rows"], key=2))
