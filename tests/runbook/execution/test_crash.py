"""The crash matrix: real processes, real `kill -9`. Nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from runbook.process import session_members
from tests.conftest import Cli, kill
from tests.runbook.helpers import write_book

pytestmark = pytest.mark.harness


@pytest.fixture
def three(cli):
    """Three steps in a row, the second takes its time."""
    cli.book = write_book(
        cli.home, {"id": "one"}, {"id": "two", "with": {"seconds": 4}}, {"id": "three"}
    )
    return cli


def supervise(cli: Cli):
    """Start a run and wait until step two works; its process and its worker's pid."""
    process = cli.start("run", "--json")
    started = cli.wait_for("attempt.started", "two")
    deadline = time.monotonic() + 10
    while "two began" not in diary(cli) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process, started["process"]["pid"]


def diary(cli: Cli) -> list[str]:
    try:
        return (cli.workspace / "diary").read_text().splitlines()
    except FileNotFoundError:
        return []


def states(cli: Cli) -> dict[str, str]:
    return {step["id"]: step["state"] for step in cli.json("status")["steps"]}


def test_alive_is_running(three):
    waits = {"id": "two", "with": {"mood": "waits"}}
    three.book = write_book(three.home, {"id": "one"}, waits, {"id": "three"})
    process, _ = supervise(three)
    answer = three.json("status")
    assert answer["run"]["state"] == "running"
    assert states(three)["two"] == "running"
    refused = three.json("run", code=6)
    assert refused["error"]["code"] == "locked"
    assert any(" wait " in command for command in refused["next"])
    assert three.json("wait", "--timeout", "0.1", code=7)["error"]["retryable"]
    (three.workspace / "go").touch()
    assert three.json("wait")["run"]["exit_code"] == 0
    assert process.wait() == 0


def test_a_dead_supervisor_leaves_an_orphan_that_finishes(three):
    process, worker = supervise(three)
    kill(process.pid)
    process.wait()
    assert session_members(worker), "the worker lives on"
    answer = three.json("status")
    assert answer["run"]["state"] == "orphaned"
    assert states(three)["two"] == "orphaned"
    refused = three.json("run", code=6)
    assert refused["error"]["code"] == "orphaned"
    assert "runbook wait" in refused["error"]["remedy"]
    assert "runbook cancel" in refused["error"]["remedy"]
    waited = three.json("wait", code=1)
    assert waited["error"]["code"] == "interrupted"
    assert states(three)["two"] == "interrupted"
    done = three.json("run")
    decisions = {step["id"]: step["decision"] for step in done["steps"]}
    assert decisions == {"one": "skip", "two": "adopt", "three": "run"}
    assert diary(three).count("two began") == 1, "what the orphan finished is not done again"


def test_an_orphan_can_be_cancelled(three):
    process, worker = supervise(three)
    kill(process.pid)
    process.wait()
    assert three.json("cancel")["cancelled"]
    assert session_members(worker) == []
    done = three.json("run")
    two = next(step for step in done["steps"] if step["id"] == "two")
    assert two["reasons"][0]["code"] == "interrupted"
    assert diary(three).count("one began") == 1


def test_a_dead_worker_fails_its_attempt(three):
    process, worker = supervise(three)
    kill(worker)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    error = json.loads(out.splitlines()[-1])["error"]
    assert error["code"] == "worker_died"
    assert "signal 9" in error["message"]
    assert error["retryable"]
    assert session_members(worker) == [], "its inner process died with it"
    done = three.json("run")
    two = next(step for step in done["steps"] if step["id"] == "two")
    assert two["reasons"][0]["code"] == "failed_before"
    assert diary(three).count("one began") == 1


def test_both_dead_is_interrupted(three):
    process, worker = supervise(three)
    kill(process.pid)
    kill(worker)
    process.wait()
    deadline = time.monotonic() + 5
    while session_members(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    answer = three.json("status")
    assert answer["run"]["state"] == "interrupted"
    assert states(three)["two"] == "interrupted"
    assert any(" run " in command for command in answer["next"])
    done = three.json("run")
    two = next(step for step in done["steps"] if step["id"] == "two")
    assert two["reasons"][0]["code"] == "interrupted"
    assert diary(three).count("one began") == 1


def test_an_interrupted_step_is_remembered_over_other_runs(three):
    process, worker = supervise(three)
    kill(process.pid)
    kill(worker)
    process.wait()
    three.json("cancel")
    three.json("run", "--only", "one")
    plan = three.json("plan")
    two = next(step for step in plan["steps"] if step["id"] == "two")
    assert two["reasons"][0]["code"] == "interrupted"


def test_lost_and_torn_records_are_survived(three):
    three.json("run")
    state = three.workspace / ".runbook"
    (state / "checkpoints" / "one.json").unlink()
    (state / "checkpoints" / "two.json").write_text('{"schema": "runb')
    journal = state / "latest" / "journal.ndjson"
    journal.write_bytes(journal.read_bytes() + b'{"seq": 99, "ty')
    done = three.json("run")
    assert [step["decision"] for step in done["steps"]] == ["adopt", "adopt", "skip"]
    assert diary(three).count("two began") == 1


@pytest.mark.parametrize("victim", ["supervisor", "worker", "both"])
def test_random_kills(cli, victim):
    """Killed again and again until it is through: what has finished is never begun again."""
    names = ["a", "b", "c", "d", "e"]
    cli.book = write_book(cli.home, *({"id": name, "with": {"seconds": 0.15}} for name in names))
    chance = random.Random(victim)
    for _ in range(12):
        process = cli.start("run", "--json")
        time.sleep(chance.uniform(0.1, 0.9))
        workers = []
        try:
            started = cli.events("attempt.started")
            workers = [started[-1]["process"]["pid"]] if started else []
        except (FileNotFoundError, ValueError):
            pass
        if victim in ("supervisor", "both"):
            process.kill()
        if victim in ("worker", "both"):
            for pid in workers:
                if session_members(pid):
                    os.kill(pid, 9)
        process.communicate(timeout=30)
        cli.json("wait", "--timeout", "30", code=None)
    assert cli.json("run")["ok"]
    lines = diary(cli)
    for name in names:
        assert lines.count(f"{name} ended") == 1
        end = lines.index(f"{name} ended")
        assert f"{name} began" not in lines[end:], "nothing finished is repeated"
    succeeded = [e["step"] for e in cli.events("attempt.succeeded", run="*")]
    assert len(succeeded) == len(set(succeeded)), "the journal proves it"
