"""The checks in their order, from the cheap to the costly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from runbook.process import Identity
from runbook.remedy import Remedy
from runbook.steps.smoke import efforts, measures, tools, words
from runbook.steps.smoke.client import Client, Unanswered
from runbook.steps.smoke.findings import Findings, Outcome, logs_of_serve

DEATH = (Remedy("run", text="{command} starts it again"), logs_of_serve("{command} has why"))
DEATH_SECONDS = 2.0
"""How long a server may take to die after its connections have ended."""

Ask = Callable[[Client, SimpleNamespace, Findings], None]

LADDER: dict[str, tuple[Ask, str]] = {
    "models": (words.models, ""),
    "echo": (words.echo, "echo"),
    "finish": (words.finish, "finish"),
    "reasoning": (words.reasoning, "reasoning"),
    "efforts": (efforts.efforts, "efforts"),
    "tool_call": (tools.tool_call, "tool_call"),
    "tool_stream": (tools.tool_stream, "tool_call"),
    "named_tool": (tools.named_tool, "named_tool"),
    "json_schema": (tools.json_schema, "json_schema"),
    "concurrency": (words.concurrency, "concurrency"),
    "speculation": (measures.speculation, "speculation"),
    "speed": (measures.speed, "speed"),
    "needle": (words.needle, "needle"),
}
"""Each check, and the input without which it is not made (null, or false)."""


def wanted(inputs: SimpleNamespace) -> Iterator[tuple[str, Ask]]:
    """The checks that the inputs ask for, in order."""
    for name, (ask, needed) in LADDER.items():
        if not needed or getattr(inputs, needed):
            yield name, ask


def examine(
    client: Client, inputs: SimpleNamespace, done: Callable[[str, int, int], None]
) -> Findings:
    """All checks, each whether or not others fail, until the server is dead; `done(name, n, of)`
    before each."""
    found = Findings()
    cases = list(wanted(inputs))
    for n, (name, ask) in enumerate(cases):
        done(name, n, len(cases))
        if not _check(client, inputs, found, found.begin(name), ask):
            break
    return found


def _check(
    client: Client, inputs: SimpleNamespace, found: Findings, outcome: Outcome, ask: Ask
) -> bool:
    """One check; whether the server lives after it."""
    before = len(client.answers)
    began = time.monotonic()
    name = outcome.name
    try:
        ask(client, inputs, found)
    except Unanswered as error:
        if _died(inputs, error):
            message = f"the server died of the check {name}: {error}"
            found.fail("server_died", "server", message, DEATH)
            return False
        found.fail(f"{name}_unanswered", "server", f"{name}: {error}", logs_of_serve())
    finally:
        answers = client.answers[before:]
        outcome.seconds = time.monotonic() - began
        outcome.requests = len(answers)
        outcome.tokens = sum(answer.completion_tokens for answer in answers)
    leaks = {leak for a in answers if not a.is_only_markup() and (leak := a.leaks()) is not None}
    if leaks and not outcome.verdicts:
        message = f"{name}: the answer has markup in it that a parser should take out: "
        found.fail(f"{name}_leaks", "parser", message + ", ".join(sorted(leaks)), tools.PARSER)
    return True


def _died(inputs: SimpleNamespace, error: Unanswered) -> bool:
    """Whether the server is dead, or just dies: its connections end first."""
    process = Identity.load(inputs.process)
    deadline = time.monotonic() + (0 if error.status else DEATH_SECONDS)
    while process is not None and process.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
