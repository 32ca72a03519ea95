"""`runbook mcp`: the verbs as tools of the Model Context Protocol, over standard input and output.

Each tool runs the program itself and gives the document that its `--json` prints, so that an agent
reads the same by either way. Nothing blocks: `run` starts a run and returns, `wait` waits for a
minute at most, and a run goes on when this server, or the agent, is gone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

import runbook

LONGEST_WAIT = 60
"""Seconds that one call of `wait` takes at most: clients give up on longer ones."""
PATIENCE = 600
"""Seconds after which any other call is given up; a check of 146 GB read whole takes minutes."""

INSTRUCTIONS = """Sets up and serves a large model from a runbook, and never loses its place.
Call `plan`, then `run`, then `wait` until it says that nothing runs any more; `status` has the
endpoint. Ask the person before `approve`. Each answer has `ok`, `next` and, on failure,
`error {code, message, cause, remedy, retryable}`. Calling `run` again is always right."""

Book = Annotated[
    str | None, Field(description="A path or a shipped name; default: runbook.yaml here.")
]
Workspace = Annotated[str | None, Field(description="Folder of state and results.")]
Inputs = Annotated[
    dict[str, str] | None, Field(description="Inputs to set; they hold for later calls.")
]
Steps = Annotated[list[str] | None, Field(description="Ids of steps; default: all.")]
Step = Annotated[str, Field(description="The id of a step.")]


async def call(
    verb: str,
    book: str | None,
    workspace: str | None,
    *arguments: str,
    steps: Sequence[str] = (),
    text: str | None = None,
) -> dict[str, Any]:
    """The document that a verb answers with."""
    import anyio

    place = ["--workspace", workspace] if workspace is not None else []
    words = [verb, *([book] if book is not None else []), *steps, *place, *arguments, "--json"]
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [sys.executable, "-m", "runbook", *words],
            input=(text or "").encode(),
            check=False,
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return {"exit_code": done.returncode, **answer}


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


def serve() -> None:
    """Serve until the client closes standard input."""
    from mcp.server import MCPServer

    server = MCPServer("runbook", instructions=INSTRUCTIONS, version=runbook.__version__)
    for tool in TOOLS:
        server.tool()(tool)
    server.run("stdio")
