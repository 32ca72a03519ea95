"""A run as a Task of the Model Context Protocol: the extension `io.modelcontextprotocol/tasks`
(SEP-2663, protocol 2026-07-28), for clients that declare it.

A task is the work of a workspace until that is done: its id says which, so that it outlives this
server. What asks for approval is `input_required`; an answer approves that very question.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp_types import CallToolRequestParams, CallToolResult, RequestParams, TextContent
from pydantic import Field

from runbook import errors
from runbook.cli.mcp_call import call
from runbook.state.journal import now
from runbook.state.recorded import question_digest

VERSIONS = frozenset({"2026-07-28"})
STARTS = ("run", "approve")
"""The tools whose work is a task."""
POLL_MS = 5000
INVALID_PARAMS = -32602
STOPPED = (errors.CANCELLED, errors.SIGINT, errors.SIGTERM, 129)

Context = ServerRequestContext[Any, Any]


class TaskParams(RequestParams):
    """The parameters of `tasks/get` and `tasks/cancel`."""

    task_id: str


class UpdateParams(TaskParams):
    """Those of `tasks/update`: answers by the keys of `inputRequests`."""

    input_responses: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Tasks(Extension):
    identifier = "io.modelcontextprotocol/tasks"

    def methods(self) -> Sequence[MethodBinding]:
        return [
            MethodBinding("tasks/get", TaskParams, get, VERSIONS),
            MethodBinding("tasks/update", UpdateParams, update, VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, cancel, VERSIONS),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Give a task instead of the answer that a run goes on."""
        result = await call_next(ctx)
        if params.name not in STARTS or not self._declared(ctx):
            return result
        given = params.arguments or {}
        place = (given.get("book"), given.get("workspace"))
        state = await _state(*place)
        if state["status"] not in ("working", "input_required"):
            return result
        return {"resultType": "task", **_task(_id(*place), state)}

    def _declared(self, ctx: Context) -> bool:
        told = ctx.session.client_capabilities
        declared = told.extensions if told is not None else None
        return ctx.protocol_version in VERSIONS and self.identifier in (declared or {})


async def get(ctx: Context, params: TaskParams) -> dict[str, Any]:
    """`tasks/get`: the state of the task and, in its end, the answer of `wait`."""
    state = await _state(*_place(params.task_id))
    more: dict[str, Any] = {key: state[key] for key in ("inputRequests", "result") if key in state}
    return {"resultType": "complete", **_task(params.task_id, state), **more}


async def update(ctx: Context, params: UpdateParams) -> dict[str, Any]:
    """`tasks/update`: approve what was answered with yes."""
    book, workspace = _place(params.task_id)
    for key, answer in params.input_responses.items():
        agreed = (answer.get("content") or {}).get("approve") is True
        if answer.get("action") == "accept" and agreed:
            await call("run", book, workspace, "--detach", "--approve", key)
    return {"resultType": "complete"}


async def cancel(ctx: Context, params: TaskParams) -> dict[str, Any]:
    """`tasks/cancel`: end the run."""
    await call("cancel", *_place(params.task_id))
    return {"resultType": "complete"}


async def _state(book: str | None, workspace: str | None) -> dict[str, Any]:
    """Status, message and, where there is one, the result or what is asked."""
    told = await call("wait", book, workspace, "--timeout", "0", "--to-end", form="--json")
    code = told.pop("exit_code")
    run = told.get("run") or {}
    state: dict[str, Any] = {"createdAt": run.get("started") or now()}
    steps = told.get("steps", ())
    if asking := [step for step in steps if step["state"] == "waiting"]:
        requests = {f"{s['id']}={question_digest(s['question'])}": _asks(s) for s in asking}
        return {**state, "status": "input_required", "inputRequests": requests}
    if code == errors.STILL_RUNNING:
        working = [step["id"] for step in steps if step["state"] in ("running", "retrying")]
        return {**state, "status": "working", "statusMessage": ", ".join(working) or "beginning"}
    if code in STOPPED:
        return {**state, "status": "cancelled"}
    from runbook.cli import brief

    text = TextContent(type="text", text=brief.text(told))
    result = CallToolResult(content=[text], is_error=code != errors.DONE)
    ended = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return {**state, "status": "completed", "result": ended}


def _asks(step: Mapping[str, Any]) -> dict[str, Any]:
    """What a step asks, as an elicitation."""
    schema = {
        "type": "object",
        "properties": {"approve": {"type": "boolean", "title": f"Approve step {step['id']}"}},
        "required": ["approve"],
    }
    params = {"mode": "form", "message": step["question"], "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def _task(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: state[key] for key in ("status", "statusMessage", "createdAt") if key in state}
    times = {"lastUpdatedAt": now(), "ttlMs": None, "pollIntervalMs": POLL_MS}
    return {"taskId": name, **shown, **times}


def _id(book: str | None, workspace: str | None) -> str:
    """The id of a task: all that finds it again, in another server too."""
    import os

    path = book if book is None or "/" not in book else os.path.abspath(book)
    place = workspace and os.path.abspath(workspace)
    return base64.urlsafe_b64encode(json.dumps([path, place]).encode()).decode().rstrip("=")


def _place(name: str) -> tuple[str | None, str | None]:
    try:
        book, workspace = json.loads(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)))
    except ValueError as problem:
        raise MCPError(code=INVALID_PARAMS, message=f"there is no task {name!r}") from problem
    return book, workspace
