"""What verbs that work on a book share: made of the table of verbs, given to them as a `Target`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click

from runbook.cli import completing, shell, words
from runbook.cli.defects import as_failure
from runbook.cli.form import Form, options
from runbook.cli.target import Given, Target
from runbook.cli.verbs import verbs
from runbook.errors import USAGE, Failure, RunbookError

Function: TypeAlias = Callable[..., Any]


def verb(name: str) -> Callable[[Function], Function]:
    """The options and arguments that the table gives a verb. Its function is given `target`, and
    `steps` if it takes them."""
    spec = verbs()[name]
    shared: list[Callable[[Any], Any]] = [
        options,
        click.option(
            "--workspace",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of the runbook's state and results.",
        ),
    ]
    if spec.sets:
        holds = "; it holds from now on." if name == "run" else " for this once."
        shared += [
            click.option(
                "--set", "sets", multiple=True, metavar="KEY=VALUE", help=f"Set an input{holds}"
            ),
            click.option(
                "--unset", multiple=True, metavar="KEY", help="An input has its default again."
            ),
        ]
    if spec.steps == "none":
        shared.append(click.argument("book", required=False, shell_complete=completing.books))
    else:
        many = "..." if spec.steps == "many" else ""
        step = f"[STEP]{many}" if many else "STEP"
        shared += [
            click.option("--book", "old_book", hidden=True),
            click.argument(
                "given",
                nargs=-1,
                metavar=f"[BOOK] {step}",
                shell_complete=completing.books_and_steps,
            ),
        ]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(
            workspace: Path | None,
            form: Form,
            book: str | None = None,
            given: tuple[str, ...] = (),
            old_book: str | None = None,
            sets: tuple[str, ...] = (),
            unset: tuple[str, ...] = (),
            **rest: Any,
        ) -> Any:
            if old_book is not None:
                raise _old_form(name, old_book, given)
            if spec.steps != "none":
                book, steps = words.split(name, given)
                rest["steps"] = steps
            target = Target(name, Given(book, workspace, sets, unset), form)
            try:
                target.own(adopt=rest.pop("adopt", False))
                if spec.steps == "one" and len(rest["steps"]) != 1:
                    raise words.one_step(name, target.book["steps"])
                return function(target=target, **rest)
            except Failure as problem:
                target.renderer.failure(problem)
                raise
            except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
                raise
            except Exception as problem:
                failure = as_failure(problem, target.workspace.root, target.workspace.state)
                target.renderer.failure(failure)
                raise failure from problem

        return functools.reduce(lambda decorated, option: option(decorated), shared, call)

    return decorate


def _old_form(name: str, book: str, given: Sequence[str]) -> RunbookError:

    return RunbookError(
        "`--book` is no option: the book comes before the steps",
        code="usage",
        exit_code=USAGE,
        cause=f"the form is `runbook {name} [BOOK] [STEP]...`",
        remedy=shell.join(["runbook", name, book, *given]),
    )


def selection(function: Function) -> Function:
    """Which steps; the verb is given them as the arguments of `planner.select`."""

    def option(flag: str, text: str, **more: Any) -> Callable[[Function], Function]:
        return click.option(
            flag, *more.pop("name", ()), metavar="STEP", help=text,
            shell_complete=completing.steps, **more,
        )  # fmt: skip

    @option("--from", "Force STEP; later ones decide.", name=("start",))
    @option("--until", "Stop after STEP.")
    @option("--only", "Force STEP, run no other.", multiple=True)
    @option("--force", "Run STEP though it holds.", multiple=True)
    @functools.wraps(function)
    def call(
        start: str | None,
        until: str | None,
        only: tuple[str, ...],
        force: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        chosen = {"start": start, "until": until, "only": only, "force": force}
        return function(chosen=chosen, **rest)

    return call


def selecting(chosen: Mapping[str, Any]) -> list[str]:
    """The arguments that select the same steps again."""
    found = []
    for name, option in (("start", "--from"), ("until", "--until")):
        if chosen[name] is not None:
            found += [option, chosen[name]]
    for name in ("only", "force"):
        found += [word for step in chosen[name] for word in (f"--{name}", step)]
    return found
