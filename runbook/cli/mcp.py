"""`runbook mcp`: the verbs as tools of the Model Context Protocol, over standard input and output.

Each tool runs the program itself and gives the document that its `--brief` prints, so that an agent
reads the same by either way. Nothing blocks: `run` starts a run and returns, `wait` waits for a
minute at most, and a run goes on when this server, or the agent, is gone. A client that has Tasks
gets one for a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

import runbook
from runbook.cli.mcp_call import call

LONGEST_WAIT = 60
"""Seconds that one call of `wait` takes at most: clients give up on longer ones."""
INSTRUCTIONS = """Sets up and serves a large model from a runbook, and never loses its place.
Call `plan`, then `run`, then `wait` until it says that nothing runs any more; `status` has the
endpoint. Ask the person before `approve`. Each answer has `ok`, `next` and, on failure,
`error {code, message, cause, remedy, retryable}`; `states` counts the steps. `wait` returns early
when you can act. Calling `run` again is always right."""

Book = Annotated[
    str | None, Field(description="A path or a shipped name; default: runbook.yaml here.")
]
Workspace = Annotated[str | None, Field(description="Folder of state and results.")]
Inputs = Annotated[
    dict[str, str] | None, Field(description="Inputs to set; they hold for later calls.")
]
Steps = Annotated[list[str] | None, Field(description="Ids of steps; default: all.")]
Step = Annotated[str, Field(description="The id of a step.")]


def _set(inputs: dict[str, str] | None) -> list[str]:
    return [word for key, value in (inputs or {}).items() for word in ("--set", f"{key}={value}")]


async def plan(
    book: Book = None, workspace: Workspace = None, inputs: Inputs = None
) -> dict[str, Any]:
    """What a run would do, why, what it costs, and what asks for approval. Changes nothing."""
    return await call("plan", book, workspace, *_set(inputs))


async def run(
    book: Book = None,
    workspace: Workspace = None,
    inputs: Inputs = None,
    start: Annotated[str | None, Field(description="Force this step; later ones decide.")] = None,
    until: Annotated[str | None, Field(description="Stop after this step.")] = None,
    force: Steps = None,
) -> dict[str, Any]:
    """Start a run, or continue one that stopped; returns at once. Then call `wait`."""
    chosen = [*(["--from", start] if start else []), *(["--until", until] if until else [])]
    chosen += [word for step in force or () for word in ("--force", step)]
    return await call("run", book, workspace, "--detach", *chosen, *_set(inputs))


async def status(book: Book = None, workspace: Workspace = None) -> dict[str, Any]:
    """Where each step stands, and the endpoint when the model is served."""
    return await call("status", book, workspace)


async def wait(
    book: Book = None,
    workspace: Workspace = None,
    seconds: Annotated[int, Field(ge=0, le=LONGEST_WAIT)] = LONGEST_WAIT,
    since: Annotated[int | None, Field(description="Give events after this number.")] = None,
) -> dict[str, Any]:
    """Wait for the run that goes on; exit code 7 says that it still does: call again."""
    after = ["--since", str(since)] if since is not None else []
    return await call("wait", book, workspace, "--timeout", str(seconds), *after)


async def logs(
    step: Step,
    book: Book = None,
    workspace: Workspace = None,
    tail: Annotated[int | None, Field(description="The last lines instead of the error.")] = None,
) -> dict[str, Any]:
    """The first error in the log of a step's last attempt, with its surroundings and what is known
    of it; with `tail` the log's last lines."""
    which = ["--errors"] if tail is None else ["--tail", str(tail)]
    return await call("logs", book, workspace, *which, steps=[step])


async def diagnose(
    text: Annotated[str, Field(description="A log from anywhere: vLLM, a build, pip, nvcc.")],
) -> dict[str, Any]:
    """The first true error of a log, and the known failure that it is, with cause and remedy."""
    return await call("diagnose", None, None, text=text)


async def approve(step: Step, book: Book = None, workspace: Workspace = None) -> dict[str, Any]:
    """Approve what a step asks (`plan` and `wait` give the question) and go on; returns at once.
    Only after the person whose disk and network it is has said yes."""
    return await call("run", book, workspace, "--detach", "--approve", step)


async def cancel(book: Book = None, workspace: Workspace = None) -> dict[str, Any]:
    """End the run that goes on, and everything it started; `run` continues it later."""
    return await call("cancel", book, workspace)


async def destroy(
    steps: Steps = None,
    book: Book = None,
    workspace: Workspace = None,
    really: Annotated[bool, Field(description="Without it only the plan is shown.")] = False,
) -> dict[str, Any]:
    """Undo steps, the last first: stop what is served, remove what was made."""
    sure = ["--yes"] if really else []
    return await call("destroy", book, workspace, *sure, steps=steps or ())


TOOLS = (plan, run, status, wait, logs, diagnose, approve, cancel, destroy)
FOLLOWING = ("check", "bench")
"""Verbs whose tools are made of what the program says of them, where it has them."""


def tools() -> list[Callable[..., Any]]:
    """Each tool as a function: its name, what it takes, and its description."""
    from runbook.cli.verbs import verbs

    return [*TOOLS, *(_following(name) for name in FOLLOWING if name in verbs())]


def _following(name: str) -> Callable[..., Any]:
    """The tool of a verb, made of its command: a parameter for each option and argument."""
    import click

    from runbook.cli.main import cli

    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    takes: dict[str, tuple[Any, str]] = {}
    for parameter in command.params:
        known = parameter.name in ("form", "workspace", "book", "given", "help")
        hidden = isinstance(parameter, click.Option) and parameter.hidden
        if parameter.name and not known and not hidden:
            takes[parameter.name] = _taken(parameter)
    by_steps = any(parameter.name == "given" for parameter in command.params)

    async def tool(**given: Any) -> dict[str, Any]:
        words = []
        for key, (_, option) in takes.items():
            value = given.get(key)
            if value is True:
                words.append(option)
            elif value not in (None, False):
                for one in value if isinstance(value, list) else [value]:
                    words += [option, str(one)] if option else [str(one)]
        steps = given.get("steps") or ()
        return await call(name, given.get("book"), given.get("workspace"), *words, steps=steps)

    kinds = {key: kind for key, (kind, _) in takes.items()}
    kinds |= {"book": Book, "workspace": Workspace} | ({"steps": Steps} if by_steps else {})
    keyword = inspect.Parameter.KEYWORD_ONLY
    tool.__name__, tool.__doc__ = name, command.help
    tool.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, keyword, default=None, annotation=kind)
            for key, kind in kinds.items()
        ],
        return_annotation=dict[str, Any],
    )
    return tool


def _taken(parameter: Any) -> tuple[Any, str]:
    """The type of a parameter, and the option that gives it ("" for an argument)."""
    flag = getattr(parameter, "is_flag", False)
    told = Field(description=getattr(parameter, "help", None) or "")
    plain: Any = bool if flag else list[str] if getattr(parameter, "multiple", False) else str
    kind = Annotated[plain | None, told]
    is_option = parameter.opts[0].startswith("-")
    return kind, parameter.opts[-1] if is_option else ""


def serve() -> None:
    """Serve until the client closes standard input."""
    from mcp.server import MCPServer

    from runbook.cli.mcp_tasks import Tasks

    server = MCPServer(
        "runbook",
        instructions=INSTRUCTIONS,
        version=runbook.__version__,
        extensions=[Tasks()],
    )
    for tool in tools():
        server.tool()(tool)
    server.run("stdio")
