"""Whatever a step's check does is that step's failure: never the run's end, its silence, exit 0
or a broken document."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time

import pytest
import yaml

from runbook.files import read_json
from runbook.planning import asking
from runbook.protocol import Check, Reason
from tests.runbook.helpers import BOOKS

BROKEN = [
    ("exits", "check_crashed", "SystemExit"),
    ("exits at once", "check_crashed", "exit status 0"),
    ("raises", "check_crashed", "Oops: oops"),
    ("interrupts", "check_crashed", "KeyboardInterrupt"),
    ("segfaults", "check_crashed", "signal 11"),
    ("hangs", "check_timeout", "within 1 s"),
    ("hangs and forks", "check_timeout", "within 1 s"),
    ("hangs for good", "check_timeout", "within 1 s"),
    ("gives nothing", "check_crashed", "a NoneType, not a Check"),
    ("gives text", "invalid_outputs", "number"),
    ("gives a path", "invalid_outputs", "number"),
    ("gives no number", "invalid_outputs", "number"),
    ("gives others", "invalid_outputs", "number"),
]


@pytest.fixture
def odd(cli):
    shutil.copy(BOOKS / "odd.py", cli.home)

    def make(mood, **more):
        step = {"id": "one", "uses": "odd.py:Odd", "with": {"mood": mood}, **more}
        other = {
            "id": "two", "uses": "command", "needs": [],
            "with": {"run": "touch two", "creates": "two"},
        }  # fmt: skip
        cli.book = cli.home / "book.yaml"
        steps = [other, step] if more.get("needs") else [step, other]
        cli.book.write_text(yaml.safe_dump({"runbook": 1, "name": "t", "steps": steps}))
        return cli

    return make


@pytest.mark.parametrize(("mood", "code", "says"), BROKEN)
def test_a_broken_check_is_its_steps_failure(odd, mood, code, says):
    cli = odd(mood, timeout="1s")
    answer = cli.json("run", code=1)
    assert answer["error"]["code"] == code
    assert answer["error"]["step"] == "one"
    assert "odd.py:Odd" in answer["error"]["message"], "it names the file and the class"
    assert says in answer["error"]["message"]
    assert [step["state"] for step in answer["steps"]] == ["failed", "satisfied"]
    assert not (cli.workspace / "applied").exists(), "nothing would prove that it was done"


AHEAD = [
    ("exits", "check_crashed", "its foresee crashed: SystemExit"),
    ("exits at once", "check_crashed", "exit status 0"),
    ("raises", "check_crashed", "Oops: oops"),
    ("interrupts", "check_crashed", "KeyboardInterrupt"),
    ("segfaults", "check_crashed", "signal 11"),
    ("hangs", "check_timeout", "its foresee did not end within 1 s"),
    ("hangs and forks", "check_timeout", "within 1 s"),
    ("hangs for good", "check_timeout", "within 1 s"),
    ("gives nothing", "check_crashed", "TypeError"),
    ("gives text", "check_crashed", "AttributeError"),
]


@pytest.mark.parametrize(("mood", "code", "says"), AHEAD)
def test_what_a_step_of_ones_own_foresees_is_asked_apart_too(odd, mood, code, says):
    """Before anything runs: then nothing does."""
    cli = odd(f"{mood} ahead", timeout="1s", needs=["two"])
    answer = cli.json("run", code=1)
    assert (answer["error"]["code"], answer["error"]["step"]) == (code, "one")
    assert "odd.py:Odd" in answer["error"]["message"]
    assert says in answer["error"]["message"]
    assert not (cli.workspace / "two").exists()
    plan = cli.json("plan", code=None)
    assert code in {reason["code"] for step in plan["steps"] for reason in step["reasons"]}


INVALID = [mood for mood, code, _ in BROKEN if code == "invalid_outputs"]


@pytest.mark.parametrize("mood", INVALID)
def test_an_attempt_names_the_class_whose_outputs_are_not_what_it_declares(odd, mood):
    """What a step gives only after it was carried out is held against its model there."""
    error = odd(f"{mood} once made").json("run", code=1)["error"]
    assert error["code"] == "invalid_outputs" and "odd.py:Odd" in error["message"]
    assert error["cause"].startswith("number: ") and "\n" not in error["cause"]


@pytest.mark.parametrize("mood", ["prints ahead", "well ahead"])
def test_what_it_prints_is_not_between_the_lines_of_the_document(odd, mood):
    cli = odd(mood, needs=["two"])
    assert len(cli.run("plan", "--json").stdout.splitlines()) == 1
    assert cli.json("run")["ok"]


@pytest.mark.parametrize("mood", ["exits", "hangs", "gives nothing", "gives text"])
def test_other_verbs_say_the_same(odd, mood):
    cli = odd(mood, timeout="1s")
    plan = cli.json("plan")
    codes = ("check_crashed", "check_timeout", "invalid_outputs")
    assert plan["steps"][0]["reasons"][-1]["code"] in codes
    assert cli.json("check", "one", code=3)["steps"][0]["state"] == "unmet"
    assert cli.json("destroy", code=None)["kind"] == "destroy"


@pytest.mark.parametrize(("mood", "code"), [("lacks", "lacks"), ("refuses", "refused")])
def test_what_a_check_says_comes_through_whole(odd, mood, code):
    cli = odd(mood)
    reason = cli.json("check", code=3)["steps"][0]["reasons"][0]
    assert reason["code"] == code
    assert f"run {cli.book} --force one" in reason["remedy"]
    assert cli.json("plan")["steps"][0]["work"]["bytes"] == (5 if mood == "lacks" else 0)


@pytest.mark.parametrize("mood", ["prints", "floods"])
def test_what_a_check_prints_is_not_between_the_lines_of_the_document(odd, mood):
    cli = odd(mood)
    process = cli.run("check", "--json", code=3)
    assert len(process.stdout.splitlines()) == 1
    assert "printed" in process.stderr or "xxx" in process.stderr
    assert cli.json("run")["ok"]
    assert len(cli.run("plan", "--json").stdout.splitlines()) == 1


def test_a_check_that_hangs_can_be_interrupted_and_cancelled(odd):
    cli = odd("hangs")
    lock = cli.workspace / ".runbook" / "lock"
    chance = random.Random(1)
    for number, code in [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 8)] * 3:
        process = cli.start("run", "--json", "--jobs", "1")
        while process.pid != (read_json(lock) or {}).get("pid"):
            time.sleep(0.01)
        time.sleep(chance.choice([0, 0.1, 1]))
        if number is None:
            assert cli.json("cancel")["cancelled"]
        else:
            process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == code


def test_detaching_does_not_wait_for_a_check(odd):
    """What watches then watches this run, not the one before."""
    cli = odd("well")
    first = cli.json("run")["run"]
    cli = odd("hangs", timeout="6s")
    detached = cli.json("run", "--detach")
    assert detached["detached"]
    assert detached["run"] != first
    status = cli.json("status")
    assert (status["run"]["id"], status["run"]["state"]) == (detached["run"], "running")
    assert cli.json("wait", "--timeout", "0.1", code=7)["run"]["id"] == detached["run"]
    done = cli.json("wait", code=1)
    assert done["run"]["id"] == detached["run"]
    assert done["error"]["code"] == "check_timeout"


class TestHere:
    """A shipped step is asked in the process of the run itself."""

    @pytest.mark.parametrize(
        ("found", "code"),
        [
            (SystemExit(0), "check_crashed"),
            (ZeroDivisionError(), "check_crashed"),
            (GeneratorExit(), "check_crashed"),
            (Check.satisfied({"word": {}, "more": 1}), ""),
            (Check(False, (Reason("no", "no"),)), ""),
        ],
    )
    def test_what_it_raises(self, world, found, code):
        world.there["one"] = found
        run = world.run(world.book({"id": "one"}, {"id": "two", "needs": []}))
        assert run.states["two"] == "satisfied"
        assert (run.error or {"code": ""})["code"] == code
        if code:
            assert run.code == 1
            assert run.attempts == [("two", 1, False)]

    @pytest.mark.parametrize("stubborn", [False, True])
    def test_a_hang_ends_at_its_limit(self, world, stubborn, monkeypatch):
        def check(self, ctx):
            for _ in range(3 if stubborn else 1):
                with contextlib.suppress(BaseException if stubborn else Exception):
                    time.sleep(60)
            raise AssertionError("it went on")

        monkeypatch.setattr("tests.runbook.fakes.FakeStep.check", check)
        begun = time.monotonic()
        run = world.run(world.book({"id": "one", "timeout": 0.2}))
        assert run.error["code"] in ("check_timeout", "check_crashed")
        assert time.monotonic() - begun < 30
        assert not asking.WATCH.asking

    def test_a_check_may_have_a_limit_of_its_own(self, world, monkeypatch):
        fake = "tests.runbook.fakes.FakeStep"
        monkeypatch.setattr(f"{fake}.check_limit", lambda self, inputs: 0.1, raising=False)
        monkeypatch.setattr(f"{fake}.check", lambda self, ctx: time.sleep(60))
        run = world.run(world.book({"id": "one"}))
        assert run.error["code"] == "check_timeout"
        assert "0.1 s" in run.error["message"]

    def test_outputs_are_held_against_the_model_once(self, world, monkeypatch):
        seen = []
        monkeypatch.setattr(asking, "validate", lambda kind, check: seen.append(check.outputs))
        book = world.book({"id": "one"})
        world.there["one"] = "here"
        assert world.run(book).decisions == {"one": "adopt"}
        assert world.run(book).decisions == {"one": "skip"}
        world.there["one"] = "otherwise"
        assert world.run(book).decisions == {"one": "adopt"}
        assert seen == [{"word": "here"}, {"word": "otherwise"}]
