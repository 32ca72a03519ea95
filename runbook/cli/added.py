"""The verbs that steps add: made of their table, which says what they take and who answers."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from runbook import errors, redact
from runbook.cli import completing, envelope, shell, terminal
from runbook.cli.form import Form, options
from runbook.cli.options import verb
from runbook.cli.target import Target
from runbook.errors import Failure
from runbook.planning.context import default_cache


def command(name: str) -> click.Command:
    """The click command of a verb in `runbook.steps.VERBS`."""
    told = importlib.import_module("runbook.steps").VERBS[name]
    call = _on_workspace(name, told) if told.get("workspace") else _alone(name, told)
    for parameter in told["takes"]:
        call = _parameter(dict(parameter))(call)
    return click.command(name, help=told["help"])(call)


def _alone(name: str, told: Mapping[str, Any]) -> Callable[..., int]:
    """A verb that needs no workspace."""

    @options
    def call(form: Form, **given: Any) -> int:
        if told.get("book"):
            given["book"] = _known(given["book"])
        said = _said(told, given)
        _print(name, said, form)
        return _code(said)

    if told.get("book"):
        return click.argument("book", required=False, shell_complete=completing.books)(call)
    return call


def _on_workspace(name: str, told: Mapping[str, Any]) -> Callable[..., int]:
    """A verb on what runs have left in a workspace."""

    @verb(name)
    def call(target: Target, **given: Any) -> int:
        tell = functools.partial(terminal.say, stream=sys.stderr, flush=True)
        said = _said(told, {"book": recorded(target), "tell": tell, **given})
        error = said.get("error")
        following = said.get("next", ())
        answer = target.answer(error is None, said["body"], error=error, next=following)
        target.say(answer, lambda _: _text(said))
        return _code(said)

    return call


def _said(told: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the verb has to say."""
    module, _, function = told["answers"].partition(":")
    answers = getattr(importlib.import_module(module), function)
    try:
        said: Mapping[str, Any] = answers(cache=default_cache(), **given)
    except Failure as problem:
        raise _no_step(problem, told) from problem
    redactor = redact.of_this_process()
    shown = ("body", "text", "rows", "verbatim", "error")
    return {k: redactor.data(v) if k in shown else v for k, v in said.items()}


def _code(said: Mapping[str, Any]) -> int:
    return errors.DONE if said.get("error") is None else errors.PRECONDITION


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


def recorded(target: Target) -> dict[str, Any]:
    """The book with what its steps recorded: of each step `outputs` (None: no record) and `with`,
    as far as it can be rendered with those. `command` makes a command line of a verb for it."""
    from runbook.document import template

    book, workspace = target.book, target.workspace
    records = {step["id"]: workspace.checkpoint(step["id"]) for step in book["steps"]}
    outputs = {name: record["outputs"] for name, record in records.items() if record is not None}
    scope = {
        "inputs": book["inputs"],
        "steps": {name: {"outputs": given} for name, given in outputs.items()},
        "facts": {},
        "workspace": str(workspace.root),
    }
    steps = [
        {
            "id": s["id"],
            "uses": s["uses"],
            "with": template.known(s["with"], scope)[0],
            "outputs": outputs.get(s["id"]),
        }
        for s in book["steps"]
    ]
    return {
        "name": book["name"],
        "workspace": workspace.root,
        "inputs": list(book["declared"]),
        "steps": steps,
        "command": target.command,
    }


def _parameter(told: dict[str, Any]) -> Any:
    """An option or argument of click, of its description."""
    name = told.pop("name")
    if not name.startswith("--"):
        return click.argument(name, **told)
    return click.option(name, show_default="default" in told, **told)


def _print(name: str, said: Mapping[str, Any], form: Form) -> None:
    from runbook.cli.remedies import Renderer

    renderer = Renderer(lambda *words: shell.join(["runbook", *words]))
    document = envelope.document(
        name,
        said.get("error") is None,
        said["body"],
        error=said.get("error"),
        next=[line for one in said.get("next", ()) if (line := renderer.command(one))],
    )
    envelope.print_answer(renderer.complete(document), form, lambda _: _text(said))


def _text(said: Mapping[str, Any]) -> str:
    """What people read; `verbatim` is to be pasted, so no line of it is broken."""
    if (verbatim := said.get("verbatim")) is not None:
        return str(verbatim)
    text = said.get("text")
    if text is not None:
        return "\n".join(terminal.hanging(line, 2) for line in text.split("\n"))
    return terminal.table(said["rows"], key=2)
