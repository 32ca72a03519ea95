"""`runbook check`: whether steps hold, by their own checks, and what would mend them."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess

import pytest

from tests.runbook.helpers import write_book


@pytest.fixture
def chain(cli):
    """one; two, which reads the outputs of one; three, which only comes after two."""
    read = "{{ steps.one.outputs.content }}"
    cli.book = write_book(
        cli.home,
        {"id": "one", "with": {"mood": "hides"}},
        {"id": "two", "with": {"content": read}},
        {"id": "three"},
    )
    return cli


def states(answer):
    return {step["id"]: step["state"] for step in answer["steps"]}


def damage(cli, name):
    (cli.workspace / name).write_text("damaged")


def test_all_steps_hold(chain):
    chain.json("run")
    answer = chain.json("check")
    assert states(answer) == {"one": "satisfied", "two": "satisfied", "three": "satisfied"}
    assert [r["code"] for r in answer["steps"][0]["reasons"]] == ["up_to_date"]
    assert answer["next"] == [f"runbook status {chain.book}"]


def test_nothing_is_changed_and_nothing_recorded(chain):
    chain.json("run")
    damage(chain, "three")
    before = {path: path.stat().st_mtime_ns for path in chain.workspace.rglob("*")}
    chain.json("check", "--deep", code=3)
    assert {path: path.stat().st_mtime_ns for path in chain.workspace.rglob("*")} == before


def test_a_step_that_does_not_hold_is_named_with_the_command_that_mends_it(chain):
    chain.json("run")
    damage(chain, "three")
    answer = chain.json("check", code=3)
    assert states(answer) == {"one": "satisfied", "two": "satisfied", "three": "unmet"}
    assert answer["error"]["code"] == "unmet"
    assert answer["error"]["message"] == "1 of 3 steps do not hold: three"
    assert "damaged" in answer["error"]["cause"]
    assert answer["error"]["remedy"] == answer["next"][0] == f"runbook run {chain.book}"
    assert chain.json("run")["ok"]
    chain.json("check")


def test_a_step_is_named_in_the_folder_of_a_book(cli):
    """Without a book a name is a step, and the book is that of the folder."""
    write_book(cli.home, {"id": "one"}, {"id": "two"}).rename(cli.home / "runbook.yaml")
    cli.json("run")
    assert states(cli.json("check", "two", "--deep")) == {"two": "satisfied"}
    answer = cli.json("check", "tow", code=2)
    assert answer["error"]["message"] == "there is no step `tow`; did you mean `two`?"


def test_what_only_the_thorough_check_sees_is_mended_by_the_command_it_names(chain):
    chain.json("run")
    damage(chain, "one")
    chain.json("check")
    answer = chain.json("check", "one", "--deep", code=3)
    assert states(answer) == {"one": "unmet"}
    assert answer["deep"] is True
    (command,) = answer["next"]
    assert command == f"runbook run {chain.book} --only one"
    chain.json(*shlex.split(command)[1:2], *shlex.split(command)[3:])
    chain.json("check", "--deep")


def test_of_all_steps_those_that_a_thorough_check_refuses_are_forced(chain):
    chain.json("run")
    damage(chain, "one")
    answer = chain.json("check", "--deep", code=3)
    assert answer["next"] == [f"runbook run {chain.book} --force one"]


def test_a_named_step_is_not_mended_before_what_it_needs(chain):
    chain.json("run")
    (chain.workspace / "two").unlink()
    (chain.workspace / "three").unlink()
    answer = chain.json("check", "three", code=3)
    assert states(answer) == {"three": "unmet"}
    assert answer["next"] == [f"runbook run {chain.book} --until three"]
    (chain.workspace / "two").write_text("done")
    answer = chain.json("check", "three", code=3)
    assert answer["next"] == [f"runbook run {chain.book} --only three"]


def test_only_the_named_steps_are_read_thoroughly(chain):
    chain.json("run")
    damage(chain, "one")
    assert states(chain.json("check", "two", "--deep")) == {"two": "satisfied"}


def test_what_depends_on_missing_outputs_is_unknown(chain):
    chain.json("run")
    (chain.workspace / "one").unlink()
    answer = chain.json("check", code=3)
    assert states(answer) == {"one": "unmet", "two": "unknown", "three": "satisfied"}
    (reason,) = answer["steps"][1]["reasons"]
    assert reason["code"] == "upstream"
    assert "one does not hold (one is missing)" in reason["message"]
    alone = chain.json("check", "two", code=3)
    assert states(alone) == {"two": "unknown"}
    assert alone["next"] == [f"runbook run {chain.book} --until two"]


def test_an_inactive_step_holds(cli):
    cli.book = write_book(cli.home, {"id": "one", "when": "false"})
    assert states(cli.json("check")) == {"one": "inactive"}


def test_a_changed_definition_is_told(cli):
    inputs = {"pace": {"type": "number", "default": 0.0}}
    step = {"id": "one", "with": {"seconds": "{{ inputs.pace }}"}}
    cli.book = write_book(cli.home, step, inputs=inputs)
    cli.json("run")
    answer = cli.json("check", "--set", "pace=0.1")
    assert answer["steps"][0]["reasons"][0]["code"] == "stale"


def test_a_line_a_step_for_people(chain):
    chain.json("run")
    damage(chain, "three")
    process = chain.run("check", code=3)
    assert [line.split()[:2] for line in process.stdout.splitlines()] == [
        ["one", "satisfied"],
        ["two", "satisfied"],
        ["three", "unmet"],
    ]
    assert "error: 1 of 3 steps do not hold: three" in process.stderr
    assert "\033" not in process.stdout


def test_a_thorough_check_shows_its_progress_on_a_terminal(cli):
    cli.book = write_book(cli.home, {"id": "one", "with": {"seconds": 1.0}})
    cli.json("run")
    ours, theirs = pty.openpty()
    environment = {**cli.environment, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(cli.argv("check", "--deep"), env=environment, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # the other end is closed: Linux says so by EIO
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"of 20 pages" in shown
    assert b"satisfied" in shown
