"""The envelope of every answer: plain data, one shape, for `--json` and for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runbook.cli import terminal
from runbook.cli.form import Form
from runbook.state.records import SCHEMA

MOST_OTHERS = 9
"""Errors of steps that people are told besides the first."""


def document(
    kind: str,
    ok: bool,
    body: Mapping[str, Any] | None = None,
    *,
    error: Mapping[str, Any] | None = None,
    next: Sequence[str] = (),
) -> dict[str, Any]:
    """An answer of the verb `kind`."""
    answer: dict[str, Any] = {"schema": SCHEMA, "kind": kind, "ok": ok, **(body or {})}
    if error is not None:
        answer["error"] = dict(error)
    answer["next"] = list(next)
    return answer


def print_json(value: Any) -> None:
    print(terminal.safe_json(json.dumps(value, ensure_ascii=False)), flush=True)


def print_answer(
    answer: Mapping[str, Any], form: Form, human: Callable[[Mapping[str, Any]], str]
) -> None:
    """Print an answer in a form; `human` makes the text for people."""
    if form == "json":
        print_json(answer)
    elif form == "brief":
        from runbook.cli import brief

        print(terminal.safe_json(brief.text(answer)), flush=True)
    else:
        print_human(answer, human)


def print_human(answer: Mapping[str, Any], human: Callable[[Mapping[str, Any]], str]) -> None:
    """What people read of an answer on standard output, its error on standard error."""
    text = human(answer)
    if text:
        terminal.say(text)
    if answer.get("error"):
        found = answer.get("errors")  # of the linter, their number
        print_error(answer["error"], answer["next"], found if isinstance(found, list) else ())


def print_error(
    error: Mapping[str, Any],
    following: Sequence[str],
    found: Sequence[Mapping[str, Any]] = (),
) -> None:
    """The one clear error, those of other steps, and the commands to call then that no remedy
    names."""
    from runbook.cli.human import error_text

    if error["code"] == "approval" and not error.get("step"):  # a plan that waits for its --yes
        terminal.say(f"{error['message']}; to do it: {error['remedy']}", sys.stderr)
        return
    others = [one for one in found if one.get("step") not in (None, error.get("step"))]
    shown = [error, *others[:MOST_OTHERS]]
    lines = [error_text(one) for one in shown]
    if len(others) > MOST_OTHERS:
        lines.append(f"and {len(others) - MOST_OTHERS} other steps failed; `status` names them")
    named = {word for e in shown for word in (e["remedy"], *e["remedy"].split("`")[1::2])}
    lines += [f"  next:   {command}" for command in following if command not in named]
    terminal.say("\n".join(lines), sys.stderr)
