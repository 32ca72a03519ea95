"""Completing the commands that errors name, so that they may be run as they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

# The verbs that work on a book: those that are given it as an argument, and by `--book`.
POSITIONAL = frozenset({"validate", "plan", "run", "status", "wait", "events", "cancel"})
OPTIONAL = frozenset({"check", "logs", "destroy"})

_NESTED = (dict, list)
_COMMAND = re.compile(r"`(runbook [^`]+)`")


def complete(value: Mapping[str, Any] | list[Any], command: Callable[..., str]) -> Any:
    """The same plain data, with every `remedy` in it completed by `text`."""
    if isinstance(value, list):
        return [complete(item, command) if isinstance(item, _NESTED) else item for item in value]
    completed = dict(value)
    for key, item in value.items():
        if isinstance(item, _NESTED):
            completed[key] = complete(item, command)
        elif key == "remedy" and item:
            completed[key] = text(item, command)
    return completed


def text(remedy: str, command: Callable[..., str]) -> str:
    """A remedy whose commands, which stand in backticks, are completed by `line`."""
    return _COMMAND.sub(lambda found: f"`{line(found[1], command)}`", remedy)


def line(given: str, command: Callable[..., str]) -> str:
    """A command line that names the book, workspace and inputs.

    The engine and the steps write "runbook run --from build", for they do not know how the program
    was called; `command` does, given a verb and its arguments. A command that names its book
    already, or needs none, stays as it is.
    """
    _, verb, *arguments = shlex.split(given)
    if verb in POSITIONAL and (not arguments or arguments[0].startswith("-")):
        return command(verb, *arguments)
    if verb in OPTIONAL and "--book" not in arguments:
        return command(verb, *arguments, positional=False)
    return given
