"""Which of a verb's words is the book, and which are steps: `runbook VERB [BOOK] [STEP...]`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runbook.cli import shell
from runbook.document.compile import compile_book, find_book, shipped_books
from runbook.errors import USAGE, Failure, RunbookError
from runbook.planning.context import default_cache


def split(verb: str, given: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The book, None for the default one, and the steps. The first word is the book if it is a
    path or a shipped name; a step of the default book that has the name of a book is ambiguous."""
    if not given:
        return None, ()
    first, rest = given[0], tuple(given[1:])
    if is_path(first):
        return first, rest
    known = steps_of(None)
    if first in shipped_books():
        if first in known:
            raise _ambiguous(verb, first, rest)
        return first, rest
    if first not in known:
        _refuse(first, known)
    return None, tuple(given)


def is_path(word: str) -> bool:
    """Whether a word can only be a document's path: no step's id looks like that."""
    return "/" in word or word.endswith((".yaml", ".yml"))


def steps_of(book: str | None) -> list[str]:
    """The ids of a book's steps; none if it cannot be read, which is told when it is used."""
    cache = default_cache() / "compiled"
    try:
        compiled = compile_book(book, (), cache, os.environ, require_inputs=False)
    except Failure:
        return []
    return [step["id"] for step in compiled["steps"]]


def _ambiguous(verb: str, word: str, rest: Sequence[str]) -> RunbookError:
    default, shipped = find_book(None), find_book(word)
    lines = [
        shell.join(["runbook", verb, str(default), word, *rest]),
        shell.join(["runbook", verb, str(shipped), *rest]),
    ]
    return RunbookError(
        f"`{word}` is a step of {default} and a shipped book as well",
        code="ambiguous",
        exit_code=USAGE,
        remedy=f"the step: `{lines[0]}`; the book: `{lines[1]}`",
        next=tuple(lines),
    )


def _refuse(word: str, known: Sequence[str]) -> None:
    """Raise for a word that is neither a book nor a step of the default book."""
    import difflib

    near = difflib.get_close_matches(word, [*known, *shipped_books()], 1)
    default = find_book(None)
    name = default.name if default.parent == Path.cwd() else default.stem
    raise RunbookError(
        f"there is no step `{word}`" + (f"; did you mean `{near[0]}`?" if near else ""),
        code="unknown_step",
        exit_code=USAGE,
        cause=f"the default book here is {name}; its steps are: " + ", ".join(known),
        remedy="name a step, or its book before it: a path, or a name that `runbook list` shows",
    )


def one_step(verb: str, steps: Sequence[Mapping[str, Any]]) -> RunbookError:
    """The refusal of a verb that takes one step and was given none, or several."""
    from runbook.remedy import Remedy

    names = [step["id"] for step in steps]
    return RunbookError(
        f"`{verb}` takes one step",
        code="usage",
        exit_code=USAGE,
        cause="the steps are: " + ", ".join(names),
        remedy=Remedy(verb, (names[-1],), text="name one: {command}"),
    )
