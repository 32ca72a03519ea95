"""The verbs as tools, by the official client over real standard input and output."""

from __future__ import annotations

import json
import os
import signal
import sys

import anyio
import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client

from runbook.cli.mcp import TOOLS
from tests.conftest import validate
from tests.runbook.helpers import write_book

pytestmark = pytest.mark.filterwarnings("ignore")


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
        assert {tool.name for tool in tools} == {tool.__name__ for tool in TOOLS}
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
        assert waited["events"][0]["type"] == "run.started"
        await ask(session, "approve", **where, step="two")
        assert (await ask(session, "wait", **where, seconds=30))["exit_code"] == 0
        status = await ask(session, "status", **where)
        assert {step["state"] for step in status["steps"]} == {"satisfied"}
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
    del status["exit_code"]
    validate("status", status)


def test_a_log_is_diagnosed(book):
    async def conversation(session):
        return await ask(session, "diagnose", text="nvcc fatal   : Unknown option 'x'")

    assert talk(book, conversation)["diagnosis"]["code"] == "nvcc_too_old"


def test_a_run_outlives_the_server(book):
    async def conversation(session):
        await ask(session, "run", book=str(book.book))
        with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
            for child in map(int, file.read().split()):
                os.kill(child, signal.SIGKILL)

    with pytest.raises(BaseException):  # noqa: B017 (whatever the client makes of it)
        talk(book, conversation)
        raise SystemExit
    book.json("wait", "--timeout", "30", code=5)
