"""From bare machine to served and smoke-tested model, and what may happen on the way."""

from __future__ import annotations

import json
import os
import random
import time
from importlib.resources import files

import pytest

from runbook.process import session_members
from tests.conftest import kill

pytestmark = pytest.mark.e2e

STEPS = ["preflight", "toolkit", "build", "publish", "weights", "mtp", "serve", "smoke"]
ANSWER = "The rehearsal model says pong: one two three four five six seven eight nine ten."
# Of the random kills; 50 take about ten minutes on two cores.
KILLS = int(os.environ.get("RUNBOOK_TEST_KILLS", "8"))


def until(happens, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def decisions(answer) -> dict[str, str]:
    return {step["id"]: step["decision"] for step in answer["steps"]}


def test_random_kills_then_one_run(rehearsal):
    """`kill -9` of supervisor, worker or both at random moments: `run` always goes on, and what
    has finished is not repeated."""
    chance = random.Random(7)
    for number in range(KILLS):
        process = rehearsal.start("run", "--json")
        time.sleep(chance.choice([chance.uniform(0.3, 3), chance.uniform(3, 20)]))
        try:
            started = rehearsal.events("attempt.started")
        except (FileNotFoundError, ValueError):
            started = []
        victim = ("supervisor", "worker", "both")[number % 3]
        if victim != "worker":
            process.kill()
        if victim != "supervisor":
            for event in started:
                if session_members(event["process"]["pid"]):
                    kill(event["process"]["pid"])
        process.communicate()
        rehearsal.json("wait", code=None)
        if not rehearsal.json("plan")["would_run"]:
            rehearsal.json("destroy", "--yes")  # through already: once more from the start
    answer = rehearsal.json("run")
    assert set(decisions(answer)) == set(STEPS)
    finished: set[str] = set()
    for event in rehearsal.events(run="*"):
        if event["type"] == "attempt.started":
            assert event["step"] not in finished, f"{event['step']} was done already"
        # What a killed supervisor could not record is adopted by the next run.
        if event["type"] in ("attempt.succeeded", "step.satisfied"):
            finished.add(event["step"])
        if event["type"] == "undo.finished":
            finished.discard(event["step"])
    assert finished == set(STEPS)


def test_a_second_run_does_nothing_and_the_model_answers(rehearsal):
    answer = rehearsal.json("run")
    assert set(decisions(answer).values()) == {"skip"}
    assert answer["run"] is None
    assert answer["endpoint"] == f"http://127.0.0.1:{rehearsal.port}/v1"
    assert rehearsal.json("status")["endpoint"] == answer["endpoint"]
    assert rehearsal.ask("ping") == ANSWER
    smoke = answer["outputs"]["smoke"]
    assert (smoke["drafted"], smoke["accepted"]) == (10, 7)
    assert smoke["decode_tokens_per_second"] > 0


def test_only_smoke_asks_the_running_server(rehearsal):
    before = rehearsal.service("serve")
    answer = rehearsal.json("run", "--only", "smoke")
    assert [e["step"] for e in rehearsal.events("attempt.started")] == ["smoke"]
    assert decisions(answer)["smoke"] == "run"
    assert rehearsal.service("serve") == before


def test_from_build_repeats_the_build_and_what_is_made_with_it(rehearsal):
    answer = rehearsal.json("run", "--from", "build")
    with_it = ["build", "mtp", "serve", "smoke"]
    assert [e["step"] for e in rehearsal.events("attempt.started")] == with_it
    assert {name for name, verb in decisions(answer).items() if verb == "run"} == set(with_it)
    assert rehearsal.ask("ping") == ANSWER


def test_until_weights_stops_there(rehearsal):
    answer = rehearsal.json("run", "--until", "weights")
    assert list(decisions(answer)) == STEPS[: STEPS.index("weights") + 1]


def test_a_dead_server_is_seen_and_started_again(rehearsal):
    kill(rehearsal.service("serve").pid)
    time.sleep(1)
    (checked,) = rehearsal.json("check", "serve", code=3)["steps"]
    assert "died at 20" in checked["reasons"][0]["message"]
    kill(rehearsal.service("publish").pid)
    time.sleep(1)
    entries = {step["id"]: step for step in rehearsal.json("status")["steps"]}
    assert (entries["serve"]["state"], entries["publish"]["state"]) == ("stopped", "stopped")
    assert "died at 20" in entries["serve"]["error"]["message"]
    rehearsal.json("plan", "--exit-code", code=4)
    rehearsal.json("run")
    assert "the server is started again" in str(rehearsal.events("attempt."))
    ran = [e["step"] for e in rehearsal.events("attempt.started")]
    assert sorted(ran) == ["publish", "serve", "smoke"]
    assert rehearsal.ask("ping") == ANSWER


def test_a_switch_that_cannot_start_gives_the_former_server_back(rehearsal, monkeypatch):
    """Only serve and what follows it run again, and the model goes on to answer."""
    text = (files("runbook.books") / "rehearsal.yaml").read_text()
    book = rehearsal.home / "rehearsal.yaml"
    book.write_text(text.replace("max_model_len: 4096", "max_model_len: 40000000"))
    shipped = rehearsal.book
    monkeypatch.setattr(rehearsal, "book", book)
    refused = rehearsal.json("run", code=3)
    assert refused["error"]["code"] == "workspace_of_another_book"
    answer = rehearsal.json("run", "--adopt-workspace", code=1)
    assert [e["step"] for e in rehearsal.events("attempt.started")] == ["serve"]
    assert "the server that served before serves again" in answer["error"]["message"]
    assert rehearsal.ask("ping") == ANSWER
    book.write_text(text.replace("max_model_len: 4096", "max_model_len: 2048"))
    answer = rehearsal.json("run")
    ran = {e["step"] for e in rehearsal.events("attempt.started")}
    assert ran == {"serve", "smoke"}
    assert rehearsal.ask("ping") == ANSWER
    monkeypatch.setattr(rehearsal, "book", shipped)
    rehearsal.json("run", "--adopt-workspace")


def test_a_supervisor_that_dies_while_it_serves_harms_no_server(rehearsal):
    rehearsal.json("run")
    served = rehearsal.service("serve")
    process = rehearsal.start("run", "--force", "smoke", "--json")
    until(lambda: [e["step"] for e in rehearsal.events("attempt.started")] == ["smoke"])
    process.kill()
    process.communicate()
    rehearsal.json("wait", code=None)
    assert rehearsal.ask("ping") == ANSWER
    answer = rehearsal.json("run")
    assert decisions(answer)["serve"] == "skip"
    assert rehearsal.service("serve") == served


def test_a_cancelled_switch_gives_the_former_server_back(rehearsal, monkeypatch):
    rehearsal.json("run")
    text = (files("runbook.books") / "rehearsal.yaml").read_text()
    book = rehearsal.home / "rehearsal.yaml"
    book.write_text(text.replace("max_model_len: 4096", "max_model_len: 3072"))
    shipped = rehearsal.book
    monkeypatch.setattr(rehearsal, "book", book)
    process = rehearsal.start("run", "--adopt-workspace", "--json")
    before = rehearsal.service("serve")
    record = rehearsal.workspace / "serve" / "state.json"
    until(lambda: record.exists() and json.loads(record.read_text())["process"] != before.dump())
    rehearsal.json("cancel")
    process.communicate()
    assert "the server that served before starts again" in str(rehearsal.events("attempt."))
    monkeypatch.setattr(rehearsal, "book", shipped)
    begun = json.loads(record.read_text())["process"]
    rehearsal.json("run", "--adopt-workspace")
    assert rehearsal.service("serve").dump() == begun, "it was waited for"
    assert rehearsal.ask("ping") == ANSWER


def test_destroy_leaves_nothing_running(rehearsal):
    services = [rehearsal.service("serve"), rehearsal.service("publish")]
    planned = rehearsal.json("destroy", code=5)
    assert [step["id"] for step in planned["steps"]] == STEPS[::-1]
    rehearsal.json("destroy", "--yes")
    assert not any(service.alive() for service in services)
    assert {step["state"] for step in rehearsal.json("status")["steps"]} == {"never_ran"}
    assert sorted(p.name for p in rehearsal.workspace.iterdir() if p.name[0] != ".") == []
