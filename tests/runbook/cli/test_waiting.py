"""`wait` comes back when its caller can act, and says what to call next."""

from __future__ import annotations

import shlex
import textwrap

import pytest

from tests.runbook.cli.test_answers import SERVER
from tests.runbook.helpers import write_book

LONG = {"id": "long", "with": {"mood": "waits"}}


def call(cli, command, code=0):
    """Call a command of an answer as it stands."""
    _, verb, *arguments = shlex.split(command)
    book, cli.book = cli.book, None
    try:
        return cli.json(verb, *arguments, code=code)
    finally:
        cli.book = book


def test_an_approval_is_asked_for_and_given_while_the_rest_goes_on(cli):
    ask = {"id": "ask", "needs": [], "approve": "Get it?"}
    cli.book = write_book(cli.home, LONG, ask, {"id": "last", "needs": ["ask", "long"]})
    started = cli.json("run", "--detach")
    assert started["next"][0] == f"runbook wait {cli.book} --timeout 100 --since 1"
    asked = call(cli, started["next"][0], code=5)
    assert asked["run"]["state"] == "running"
    assert asked["error"]["step"] == "ask"
    approve, again = asked["next"]
    assert asked["error"]["remedy"] == approve
    still = call(cli, f"{again.replace('--timeout 100', '--timeout 0')}", code=7)
    assert still["next"][0].startswith(f"runbook wait {cli.book}"), "who waits on approves nothing"
    assert sorted(cli.json("status")["next"]) == sorted(asked["next"])
    approved = call(cli, approve)
    assert approved["run"] == asked["run"]["id"], "the same run has it"
    assert cli.wait_for("attempt.succeeded", "ask")
    (cli.workspace / "go").touch()
    done = call(cli, again)
    assert [step["state"] for step in done["steps"]] == ["satisfied"] * 3
    assert [e["step"] for e in cli.events("step.approved")] == ["ask"]


@pytest.mark.parametrize("given", ["ask=0123456789ab", "long"])
def test_what_nobody_asks_is_not_approved_in_a_run_that_goes_on(cli, given):
    cli.book = write_book(cli.home, LONG, {"id": "ask", "needs": [], "approve": "Get it?"})
    cli.json("run", "--detach")
    cli.wait_for("step.waiting", "ask")
    refused = cli.json("run", "--approve", given, code=6)
    assert any("--since" in command for command in refused["next"])
    (cli.workspace / "go").touch()
    assert cli.json("wait", "--to-end", code=5)["run"]["exit_code"] == 5
    assert cli.json("run", code=5)["error"]["step"] == "ask", "an approval is of one run"


def test_a_failure_is_told_at_once_and_once(cli):
    cli.book = write_book(cli.home, LONG, {"id": "bad", "needs": [], "with": {"mood": "fails"}})
    told = call(cli, cli.json("run", "--detach")["next"][0], code=1)
    assert told["run"]["state"] == "running"
    assert told["error"]["step"] == "bad" and told["errors"] == [told["error"]]
    logs, again = told["next"]
    assert call(cli, logs)["step"] == "bad"
    since = again.partition("--since ")[2].split()[0]
    still = cli.json("wait", "--since", since, "--timeout", "0.3", code=7)
    assert still["error"]["code"] == "still_running"
    assert cli.json("wait", "--to-end", "--timeout", "0.3", code=7)
    (cli.workspace / "go").touch()
    assert call(cli, again, code=1)["run"]["state"] == "finished"


def test_a_failure_that_is_tried_again_is_none_to_act_upon(cli):
    retry = {"attempts": 2, "backoff": "60s"}
    bad = {"id": "bad", "retry": retry, "with": {"mood": "fails for now"}}
    cli.book = write_book(cli.home, bad)
    cli.json("run", "--detach")
    cli.wait_for("step.waiting", "bad")
    assert cli.json("wait", "--timeout", "1.5", code=7)["steps"][0]["state"] == "retrying"
    cli.json("cancel")


def test_who_waits_hears_that_the_model_is_served_before_the_run_ends(cli):
    write_book(cli.home)
    (cli.home / "server.py").write_text(SERVER)
    cli.book = cli.home / "book.yaml"
    cli.book.write_text(
        textwrap.dedent(
            """\
            runbook: 1
            name: served
            steps:
              - {id: serve, uses: "server.py:Server"}
              - {id: smoke, uses: "work.py:Work", with: {file: smoke, mood: waits}}
            """
        )
    )
    told = call(cli, cli.json("run", "--detach")["next"][0], code=7)
    assert told["served"]["endpoint"] and told["run"]["state"] == "running"
    (cli.workspace / "go").touch()
    assert call(cli, told["next"][0])["served"] == told["served"]


def test_a_run_that_ends_by_itself_is_told_as_ended(cli):
    cli.book = write_book(cli.home, {"id": "bad", "with": {"mood": "fails"}})
    told = call(cli, cli.json("run", "--detach")["next"][0], code=1)
    assert told["run"]["state"] == "finished"
