"""The verbs, in one table. The click commands, what completes commands, remedies, completion in
the shell, the schemas and the tests read it; the verbs that steps add stand beside it in
`runbook.steps.VERBS`."""

from __future__ import annotations

import functools
import importlib
from typing import Literal, NamedTuple


class Verb(NamedTuple):
    """What a verb takes, and where it lives (`module:name`, imported when it is called).

    `steps` are named after the book: `runbook VERB [BOOK] [STEP...]`. `sets`: it takes `--set` and
    `--unset`. `inputs`: every input must have a value; a verb that watches needs none. `answer` is
    the shape of its JSON answer, "" if it has none of its own.
    """

    command: str
    answer: str = ""
    book: bool = True
    steps: Literal["none", "one", "many"] = "none"
    sets: bool = False
    inputs: bool = False


VERBS: dict[str, Verb] = {
    "validate": Verb("runbook.cli.running:validate", "runbook.cli.answers:Validate", sets=True),
    "plan": Verb("runbook.cli.running:plan", "runbook.cli.answers:Plan", sets=True, inputs=True),
    "check": Verb(
        "runbook.cli.running:check",
        "runbook.cli.answers:Check",
        steps="many",
        sets=True,
        inputs=True,
    ),
    "run": Verb("runbook.cli.running:run", "runbook.cli.answers:Ran", sets=True, inputs=True),
    "status": Verb("runbook.cli.watching:status", "runbook.cli.answers:Status"),
    "wait": Verb("runbook.cli.waiting:wait", "runbook.cli.answers:Wait"),
    "logs": Verb("runbook.cli.watching:logs", "runbook.cli.answers:Logs", steps="one"),
    "events": Verb("runbook.cli.watching:events", "runbook.cli.answers:Events"),
    "cancel": Verb("runbook.cli.ending:cancel", "runbook.cli.answers:Cancel"),
    "destroy": Verb(
        "runbook.cli.ending:destroy",
        "runbook.cli.answers:Destroy",
        steps="many",
        sets=True,
    ),
    "lock": Verb(
        "runbook.cli.locking:lock",
        "runbook.cli.answers:Lock",
        steps="many",
        sets=True,
        inputs=True,
    ),
    "report": Verb("runbook.cli.reporting:report", "runbook.cli.answers:Report"),
    "bundle": Verb("runbook.cli.reporting:bundle", "runbook.cli.answers:Bundle"),
    "cache": Verb("runbook.cli.cache:cache", "runbook.cli.answers:Cache", book=False),
    "list": Verb("runbook.cli.telling:list_books", "runbook.cli.answers:List", book=False),
    "schema": Verb("runbook.cli.telling:schema", book=False),
    "completion": Verb("runbook.cli.telling:completion", book=False),
    "mcp": Verb("runbook.cli.telling:mcp", book=False),
    "skill": Verb("runbook.cli.guiding:skill", "runbook.cli.answers:Skill", book=False),
    "agents-md": Verb("runbook.cli.guiding:agents_md", "runbook.cli.answers:AgentsMd"),
}


@functools.cache
def verbs() -> dict[str, Verb]:
    """All verbs: the engine's, and those that steps add."""
    added = importlib.import_module("runbook.steps").VERBS
    return VERBS | {
        name: Verb("runbook.cli.added:command", told["answer"], book=bool(told.get("workspace")))
        for name, told in added.items()
    }
