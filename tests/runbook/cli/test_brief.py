"""Short answers: the form that agents get, and what an agent reads in all."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import textwrap

import pytest

from runbook.cli import brief, form
from tests.conftest import validate_brief
from tests.runbook.cli.test_answers import SERVER
from tests.runbook.helpers import write_book

AGENT = {"AI_AGENT": "test"}


@pytest.mark.parametrize("name", form.AGENTS)
def test_an_agent_gets_one_short_document(cli, name):
    cli.book = write_book(cli.home, {"id": "one"})
    told = json.loads(cli.run("plan", **{name: "1"}).stdout)
    assert told["decisions"] == {"run": 1}
    assert "workspace" not in told


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "brief"),
        (["--brief"], "brief"),
        (["--json"], "json"),
        (["--human"], "human"),
    ],
)
def test_what_is_asked_for_comes_before_who_asks(cli, flags, expected):
    cli.book = write_book(cli.home, {"id": "one"})
    for verb, code in (("status", 0), ("run", 0), ("logs", 2), ("check", 0), ("list", 0)):
        process = cli.run(verb, *flags, code=code, **AGENT)
        lines = process.stdout.splitlines()
        if expected == "human":
            assert not process.stdout.startswith("{")
            continue
        assert verb == "run" or len(lines) == 1
        told = json.loads(lines[-1])
        assert ("schema" in told) == (expected == "json")
        assert process.stderr == ""


def test_a_document_asked_for_by_name_asks_for_it_in_the_commands_it_names(cli):
    cli.book = write_book(cli.home, {"id": "one"})
    (again,) = json.loads(cli.run("plan", "--brief").stdout)["next"]
    assert again == f"runbook run {cli.book} --detach --brief"
    (again,) = json.loads(cli.run("plan", **AGENT).stdout)["next"]
    assert again == f"runbook run {cli.book} --detach"
    assert cli.json("plan")["next"] == [f"runbook run {cli.book}"]


def test_errors_that_are_counted_are_not_compared():
    """`lint` says how many there are."""
    assert brief.brief({"kind": "lint", "ok": False, "errors": 2})["errors"] == 2


def test_a_failure_is_said_once(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "fails"}})
    text = cli.run("run", code=1, **AGENT).stdout
    assert text.count("a bad mood") == 1
    text = cli.run("wait", code=1, **AGENT).stdout
    assert text.count("a bad mood") == 1
    assert json.loads(text)["error"]["remedy"] == "cheer it up"
    (step,) = json.loads(cli.run("status", **AGENT).stdout)["steps"]
    assert step["error"]["cause"] == "a bad mood"


def test_an_approval_is_one_command(cli):
    cli.book = write_book(cli.home, {"id": "one", "approve": "Get it?"})
    told = json.loads(cli.run("run", code=5, **AGENT).stdout)
    assert "remedy" not in told["error"]
    assert told["next"][0].startswith(f"runbook run {cli.book} --approve one=")


def test_no_colour_and_no_bar_for_an_agent_on_a_terminal(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"seconds": 0.5}})
    for flags in ([], ["--human"]):
        outer, inner = pty.openpty()
        environment = {**cli.environment, **AGENT, "TERM": "xterm-256color"}
        process = subprocess.Popen(
            cli.argv("run", *flags), env=environment, cwd=cli.home, stdout=inner, stderr=inner
        )
        os.close(inner)
        said = b""
        try:
            while block := os.read(outer, 65536):
                said += block
        except OSError:  # its other end is closed
            pass
        os.close(outer)
        assert process.wait(30) == 0
        assert b"\x1b" not in said and said


def test_the_schema_of_the_brief_form_is_printed(cli):
    schema = json.loads(cli.run("schema", "status", "--brief").stdout)
    assert schema == brief.relaxed(json.loads(cli.run("schema", "status").stdout))
    assert "kind" in schema["$defs"]["Status"]["required"]
    assert "steps" not in schema["$defs"]["Status"]["required"]


STEPS = ("preflight", "toolkit", "build", "publish", "weights", "mtp")


def test_from_nothing_to_served_an_agent_reads_little(cli):
    """Steps as many as the rehearsal's, followed by `next` alone."""
    write_book(cli.home)
    (cli.home / "server.py").write_text(SERVER)
    cli.book = cli.home / "book.yaml"
    steps = "\n".join(
        f'  - {{id: {name}, uses: "work.py:Work", with: {{file: {name}, seconds: 0.3}}}}'
        for name in STEPS
    )
    cli.book.write_text(
        textwrap.dedent(
            """\
            runbook: 1
            name: whole
            steps:
            {}
              - {{id: serve, uses: "server.py:Server"}}
              - {{id: smoke, uses: "server.py:Server", with: {{measured: true}}}}
            """
        ).format(steps)
    )
    read, command, told = 0, f"runbook plan {cli.book}", {}
    while not (told.get("kind") == "status" and told.get("served")):
        _, verb, *arguments = shlex.split(command)
        book, cli.book = cli.book, None
        process = cli.run(verb, *arguments, code=None, **AGENT)
        cli.book = book
        assert process.stderr == ""
        read += len(process.stdout.encode())
        told = json.loads(process.stdout)
        ended = told["kind"] == "wait" and told["ok"]
        command = f"runbook status {cli.book}" if ended else told["next"][0]
        assert read < 8000, told
    assert len(process.stdout.encode()) <= 600
    assert told["served"]["endpoint"] == "http://127.0.0.1:1/v1"
    assert told["states"] == {"satisfied": 8}


def test_rules_name_fields_that_answers_have():
    """A field that was renamed would come back into the brief form unseen."""
    schemas = {name: _fields(name) for name in brief.LEFT_OUT if name}
    for kind, paths in brief.LEFT_OUT.items():
        for path in paths:
            assert not kind or path.rpartition(".")[2] in schemas[kind], (kind, path)


def _fields(kind: str) -> set[str]:
    from tests.conftest import SCHEMAS

    found, open_ = set(), [json.loads((SCHEMAS / f"{kind}.schema.json").read_text())]
    while open_:
        value = open_.pop()
        if isinstance(value, dict):
            found |= set(value.get("properties", {}))
            open_ += value.values()
        elif isinstance(value, list):
            open_ += value
    return found


def test_every_state_of_a_step_is_counted():
    answer = {"schema": "runbook/1", "kind": "status", "ok": True, "next": [], "steps": [
        {"id": "a", "state": "satisfied", "error": None},
        {"id": "b", "state": "running", "progress": {"done": 1.23456, "total": None}},
    ]}  # fmt: skip
    assert brief.brief(answer) == {
        "kind": "status", "ok": True, "states": {"satisfied": 1, "running": 1},
        "steps": [{"id": "b", "state": "running", "progress": {"done": 1.235}}],
    }  # fmt: skip
    validate_brief("status", answer)


PLACE = "/srv/work"
FAILURE = {
    "code": "disk_full", "message": f"the disk of {PLACE} is full", "cause": "No space left",
    "remedy": "make room there, then `runbook run`", "retryable": False, "where": PLACE,
    "log": f"{PLACE}/.runbook/runs/1/get.1.log",
}  # fmt: skip


def waited(since, *events, state="running", **error):
    """What `wait` answers where the step `get` failed, perhaps before `since`."""
    return {
        "schema": "runbook/1", "kind": "wait", "ok": False, "workspace": PLACE, "since": since,
        "run": {"state": state, "seq": 9}, "events": list(events), "next": [],
        "error": error or {"code": "still_running", "message": "still running"}, "errors": [],
        "steps": [{"id": "get", "state": "failed", "error": FAILURE, "question": None}],
    }  # fmt: skip


FAILED = {"type": "attempt.failed", "step": "get"}


@pytest.mark.parametrize("state", ["running", "finished"])
def test_an_error_that_was_told_is_named_by_its_code(state):
    told = brief.brief(waited(5, state=state))
    assert told["states"] == {"failed": 1}
    if state == "finished":
        assert told["steps"][0]["error"] == {"code": "disk_full"}
    else:
        assert "steps" not in told
    for answer in (waited(None, state=state), waited(5, FAILED, state=state)):
        (step,) = brief.brief(answer)["steps"]
        assert step["error"]["remedy"] == FAILURE["remedy"]
    first = brief.brief(waited(5, state=state, **FAILURE, step="get"))
    assert first["error"].keys() == {"code", "message", "remedy", "retryable", "step"}
    assert "steps" not in first


def test_what_next_says_of_a_run_that_goes_on_is_not_said_again(cli):
    assert brief.brief(waited(5))["error"] == {"code": "still_running"}
    cli.book = write_book(cli.home, {"id": "one", "with": {"mood": "waits"}})
    cli.json("run", "--detach")
    told = json.loads(cli.run("run", "--detach", code=6, **AGENT).stdout)
    assert told["error"].keys() == {"code", "message", "cause"}
    assert told["next"][0].startswith(f"runbook wait {cli.book} --timeout 100 --since ")
    cli.json("cancel")


def test_what_was_served_and_ended_is_told_whole():
    answer = waited(5)
    answer["steps"][0]["state"] = "stopped"
    (step,) = brief.brief(answer)["steps"]
    assert step["error"]["cause"] == FAILURE["cause"]


def test_an_error_names_no_place_that_its_message_or_a_verb_finds():
    (step,) = brief.brief(waited(None))["steps"]
    assert step["error"].keys() == {"code", "message", "cause", "remedy", "retryable"}
    elsewhere = {**waited(None), "error": {**FAILURE, "message": "full", "where": "/elsewhere"}}
    assert brief.brief(elsewhere)["error"]["where"] == "/elsewhere"


def test_notices_are_told_once_each_and_not_of_what_failed():
    notices = [
        {"type": "attempt.notice", "step": step, "message": f"try {n % 7}"}
        for n in range(14)
        for step in ("get", "build")
    ]
    told = brief.brief(waited(0, *notices, FAILED))["events"]
    assert [e["message"] for e in told] == [f"try {n}" for n in range(4, 7)]
    assert {e["step"] for e in told} == {"build"}


def test_steps_whose_cost_is_not_known_yet_are_named_together(cli):
    write_book(cli.home)
    (cli.home / "server.py").write_text(SERVER)
    cli.book = cli.home / "book.yaml"
    given = '"{{ steps.serve.outputs.endpoint }}"'
    cli.book.write_text(
        textwrap.dedent(
            f"""\
            runbook: 1
            name: later
            steps:
              - {{id: serve, uses: "server.py:Server"}}
              - {{id: ask, uses: "work.py:Work", with: {{file: {given}}}}}
            """
        )
    )
    told = json.loads(cli.run("plan", **AGENT).stdout)
    assert (told["unknown"], told["decisions"]) == (["ask"], {"run": 1, "later": 1})
    assert [step["id"] for step in told["steps"]] == ["serve"]
    validate_brief("plan", cli.json("plan"))


def test_of_a_log_its_end_is_told(cli):
    cli.book = cli.home / "book.yaml"
    cli.book.write_text(
        "runbook: 1\nname: talks\nsteps:\n  - {id: talk, uses: command, with: {run: seq 100}}\n"
    )
    cli.run("run")
    numbers = [str(n) for n in range(1, 101)]
    for arguments, expected in (((), 20), (("--tail", "30"), 30)):
        told = json.loads(cli.run("logs", "talk", *arguments, **AGENT).stdout)["lines"]
        assert [line for line in told if line in numbers] == numbers[-expected:]
    assert cli.json("logs", "talk")["lines"][0] != numbers[-20]


def test_a_step_that_holds_is_told_of_if_its_check_warns():
    reason = {"code": "old", "message": "old driver", "remedy": "", "severity": "warning"}
    steps = [
        {"id": name, "uses": "x", "state": "satisfied", "work": {}, "seconds": 0.2, "reasons": told}
        for name, told in (("a", [reason]), ("b", [{**reason, "severity": "info"}]))
    ]
    answer = {"schema": "runbook/1", "kind": "check", "ok": True, "steps": steps, "next": []}
    (step,) = brief.brief(answer)["steps"]
    assert step == {"id": "a", "state": "satisfied", "reasons": [{"message": "old driver"}]}
