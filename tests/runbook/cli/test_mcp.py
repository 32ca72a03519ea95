"""The verbs as tools, by the official client over real standard input and output."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, Literal

import anyio
import pytest
from mcp import Client, ClientSession, MCPError, StdioServerParameters, stdio_client
from mcp.client.extension import ClientExtension, ResultClaim
from mcp_types import CallToolResult, Request, RequestParams, Result

from runbook.cli.mcp import tools as made
from tests.runbook.helpers import write_book

pytestmark = [pytest.mark.harness, pytest.mark.filterwarnings("ignore")]


def talk(cli, conversation):
    """Run a conversation with a server of its own."""

    async def whole():
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "runbook", "mcp"],
            env=cli.environment,
            cwd=str(cli.home),
        )
        with anyio.fail_after(120):
            async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
                await session.initialize()
                return await conversation(session)

    return anyio.run(whole)


async def ask(session, tool, **arguments):
    result = await session.call_tool(tool, arguments)
    assert not result.is_error, result
    return json.loads(result.content[0].text)


@pytest.fixture
def book(cli):
    cli.book = write_book(
        cli.home,
        {"id": "one", "with": {"seconds": 1.0}},
        {"id": "two", "approve": "Send two?"},
    )
    return cli


def test_the_whole_way_through_tools(book):
    async def conversation(session):
        tools = (await session.list_tools()).tools
        assert {tool.name for tool in tools} == {tool.__name__ for tool in made()}
        assert all(tool.description for tool in tools)
        where = {"book": str(book.book)}
        plan = await ask(session, "plan", **where)
        assert plan["would_run"]
        started = await ask(session, "run", **where)
        assert started["detached"]
        waited = await ask(session, "wait", **where, seconds=0)
        assert waited["exit_code"] == 7
        waited = await ask(session, "wait", **where, seconds=30, since=0)
        assert waited["exit_code"] == 5
        assert "--approve two=" in waited["next"][0]
        await ask(session, "approve", **where, step="two")
        assert (await ask(session, "wait", **where, seconds=30))["exit_code"] == 0
        status = await ask(session, "status", **where)
        assert status["states"] == {"satisfied": 2}
        checked = await ask(session, "check", **where, deep=True, steps=["one"])
        assert checked["exit_code"] == 0 and checked["states"] == {"satisfied": 1}
        logs = await ask(session, "logs", **where, step="one", tail=5)
        assert logs["step"] == "one"
        shown = await ask(session, "destroy", **where)
        assert shown["exit_code"] == 5
        undone = await ask(session, "destroy", **where, really=True)
        assert undone["exit_code"] == 0
        refused = await ask(session, "status", book="no-such-book")
        assert refused["error"]["code"] == "document_invalid"
        return status

    status = talk(book, conversation)
    assert status == {**status, "exit_code": 0, "states": {"satisfied": 2}}


def test_a_log_is_diagnosed(book):
    async def conversation(session):
        return await ask(session, "diagnose", text="nvcc fatal   : Unknown option 'x'")

    assert talk(book, conversation)["diagnosis"]["code"] == "nvcc_too_old"


def test_a_run_outlives_the_server(book):
    async def conversation(session):
        await ask(session, "run", book=str(book.book))
        with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
            for child in map(int, file.read().split()):
                with open(f"/proc/{child}/cmdline") as command:
                    if "\0mcp\0" in command.read():
                        os.kill(child, signal.SIGKILL)

    with pytest.raises(BaseException):  # noqa: B017 (whatever the client makes of it)
        talk(book, conversation)
        raise SystemExit
    book.json("wait", "--timeout", "30", code=5)


class Task(Result):
    """A task as the extension has it: that of the creation, and of `tasks/get`."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    created_at: str
    last_updated_at: str
    poll_interval_ms: int


class State(Task):
    result_type: Literal["complete"] = "complete"  # type: ignore[assignment]
    input_requests: dict[str, Any] | None = None
    result: dict[str, Any] | None = None


class TaskParams(RequestParams):
    task_id: str
    input_responses: dict[str, Any] | None = None


class TaskRequest(Request[TaskParams, str]):
    method: str
    params: TaskParams


class HasTasks(ClientExtension):
    """A client that has tasks and takes them itself."""

    identifier = "io.modelcontextprotocol/tasks"

    def claims(self):
        async def resolve(task, context) -> CallToolResult:
            raise AssertionError("it is asked for")

        return [ResultClaim(result_type="task", model=Task, resolve=resolve)]


def with_tasks(cli, conversation, has_tasks=True):
    """Run a conversation with a server of its own, in the newest protocol."""

    async def whole():
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "runbook", "mcp"],
            env=cli.environment,
            cwd=str(cli.home),
        )
        with anyio.fail_after(180):
            async with Client(server, extensions=[HasTasks()] if has_tasks else []) as client:
                return await conversation(client)

    return anyio.run(whole)


async def send(client, method, task, answers=None):
    params = TaskParams(task_id=task, input_responses=answers)
    kind = State if method == "tasks/get" else Result
    return await client.session.send_request(TaskRequest(method=method, params=params), kind)


async def state_of(client, task, status):
    """The task once it has a status."""
    while (state := await send(client, "tasks/get", task)).status != status:
        assert state.status == "working", state
        await anyio.sleep(0.2)
    return state


def test_a_run_is_a_task_that_outlives_the_server_and_asks_for_approval(book):
    async def begin(client):
        where = {"book": str(book.book)}
        task = await client.session.call_tool("run", where, allow_claimed=True)
        assert isinstance(task, Task) and task.status == "working"
        status = await client.session.call_tool("status", where)
        assert "running" in status.content[0].text, "what is quick is no task"
        return task.task_id

    task = with_tasks(book, begin)

    async def approve(client):
        asked = await state_of(client, task, "input_required")
        ((key, request),) = asked.input_requests.items()
        assert request["method"] == "elicitation/create"
        assert request["params"]["message"] == "Send two?"
        refused = {key: {"action": "decline"}, "two=0": {"action": "accept", "content": {}}}
        await send(client, "tasks/update", task, refused)
        assert (await send(client, "tasks/get", task)).status == "input_required"
        agreed = {key: {"action": "accept", "content": {"approve": True}}}
        await send(client, "tasks/update", task, agreed)
        return (await state_of(client, task, "completed")).result

    result = with_tasks(book, approve)
    assert result["isError"] is False
    assert json.loads(result["content"][0]["text"])["states"] == {"satisfied": 2}


def test_a_task_is_cancelled(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "hangs"}})

    async def conversation(client):
        task = await client.session.call_tool("run", {"book": str(cli.book)}, allow_claimed=True)
        await send(client, "tasks/cancel", task.task_id)
        assert (await send(client, "tasks/get", task.task_id)).status == "cancelled"
        with pytest.raises(MCPError):
            await send(client, "tasks/get", "none")

    with_tasks(cli, conversation)


def test_who_has_no_tasks_gets_the_answer(book):
    async def conversation(client):
        told = await client.session.call_tool("run", {"book": str(book.book)})
        return json.loads(told.content[0].text)

    assert with_tasks(book, conversation, has_tasks=False)["detached"]
    book.json("cancel")


def test_a_verb_that_follows_the_table_takes_what_the_program_takes():
    (check,) = (tool for tool in made() if tool.__name__ == "check")
    import inspect

    takes = set(inspect.signature(check).parameters)
    assert takes == {"book", "workspace", "steps", "deep", "sets", "unset"}
    assert check.__doc__
