"""What an executor decides, records and says, with steps and attempts that have no processes."""

from __future__ import annotations

import json

import pytest

from runbook.state.history import RunRecord

HOPELESS = {"error": {"code": "broken", "message": "it broke", "retryable": False}}
PASSING = {"error": {"code": "busy", "message": "too busy", "retryable": True}}
UNMET = {"error": {"code": "no_card", "message": "no card", "retryable": True, "exit_code": 3}}
NOTICE = {"type": "notice", "message": "the hub answers 429"}
PROGRESS = {
    "type": "progress", "done": 1, "total": 2, "unit": "bytes", "message": "waits for the hub",
    "items": [],
}  # fmt: skip


def said(world, step="one"):
    return json.loads((world.workspace.checkpoints / f"{step}.json").read_text())


@pytest.mark.parametrize(
    ("scripts", "attempts", "code"),
    [
        ([], 1, 0),
        ([PASSING], 2, 0),
        ([PASSING, PASSING], 3, 0),
        ([PASSING, PASSING, PASSING], 3, 1),
        ([{"dies": True}], 2, 0),
        ([HOPELESS], 1, 1),
        ([PASSING, HOPELESS], 2, 1),
        ([UNMET], 1, 3),
    ],
)
def test_what_is_tried_again(world, scripts, attempts, code):
    world.scripts["one"] = list(scripts)
    book = world.book({"id": "one", "retry": {"attempts": 3, "backoff": 0.001}})
    run = world.run(book)
    assert run.code == code
    assert run.attempts == [("one", n + 1, False) for n in range(attempts)]
    failed = [e["retry_in"] for e in run.events if e["type"] == "attempt.failed"]
    assert [delay is not None for delay in failed] == [n < attempts - 1 for n in range(len(failed))]


def test_backoff_doubles_up_to_ten_minutes(world, monkeypatch):
    monkeypatch.setattr("runbook.execution.attempts.MOST_BACKOFF", 0.004)
    world.scripts["one"] = [PASSING] * 4
    run = world.run(world.book({"id": "one", "retry": {"attempts": 4, "backoff": 0.001}}))
    delays = [e["retry_in"] for e in run.events if e["type"] == "attempt.failed"]
    assert delays == [0.001, 0.002, 0.004, None]


def test_every_step_that_failed_is_an_error(world):
    world.scripts = {"one": [HOPELESS], "three": [PASSING]}
    steps = [{"id": name, "needs": []} for name in ("one", "two", "three")]
    run = world.run(world.book(*steps))
    assert [(e["step"], e["code"]) for e in run.errors] == [("one", "broken"), ("three", "busy")]
    assert run.error == run.errors[0]
    assert run.events[-1]["errors"] == run.errors


@pytest.mark.parametrize(
    ("script", "limits", "code", "cause"),
    [
        ({"seconds": 3}, {"timeout": 2}, "timeout", ""),
        ({"seconds": 3, "says": [NOTICE]}, {"timeout": 2}, "timeout", "the hub answers 429"),
        ({"seconds": 3, "says": [PROGRESS]}, {"timeout": 2}, "timeout", "waits for the hub"),
        ({"silent": 3, "says": [NOTICE]}, {"stall": 2}, "stalled", "the hub answers 429"),
        ({"seconds": 3, "says": [NOTICE, PROGRESS]}, {"timeout": 2}, "timeout", "waits for"),
        ({"seconds": 3, "left": [77]}, {"timeout": 2}, "timeout", "processes [77] could not"),
    ],
)
def test_a_limit_says_what_was_waited_for(world, script, limits, code, cause):
    world.scripts["one"] = [{"hangs": True, **script}]
    run = world.run(world.book({"id": "one", **limits}))
    assert run.code == 1
    assert (run.error["code"], run.error["retryable"]) == (code, True)
    assert cause in run.error["cause"]
    assert bool(run.error["cause"]) == bool(cause)


def test_no_more_than_jobs_at_once(world):
    world.scripts = {name: [{"hangs": True, "seconds": 9}] for name in "abc"}
    steps = [{"id": name, "needs": [], "timeout": 1} for name in "abc"]
    run = world.run(world.book(*steps), jobs=2)
    kinds = [e["type"] for e in run.events if e["type"] in ("attempt.started", "attempt.failed")]
    assert kinds[:3] == ["attempt.started", "attempt.started", "attempt.failed"]


class TestMadeAnew:
    @pytest.fixture
    def three(self, world):
        book = world.book({"id": "one"}, {"id": "two"}, {"id": "three"})
        assert world.run(book).code == 0
        return world, book

    def test_a_second_run_does_nothing(self, three):
        world, book = three
        assert world.run(book).decisions == dict.fromkeys(("one", "two", "three"), "skip")

    @pytest.mark.parametrize(
        ("how", "run"),
        [
            ({"force": ["one"]}, ["one", "two", "three"]),
            ({"start": "two"}, ["two", "three"]),
            ({"force": ["three"]}, ["three"]),
        ],
    )
    def test_dependants_follow_and_are_told_to_trust_nothing(self, three, how, run):
        world, book = three
        done = world.run(book, **how)
        assert done.attempts == [(name, 1, True) for name in run]
        assert world.run(book).run is None, "once"

    def test_it_waits_for_dependants_outside_the_selection(self, three):
        world, book = three
        world.run(book, only=["one"])
        later = world.run(book)
        assert later.decisions == {"one": "skip", "two": "run", "three": "run"}
        assert later.steps["two"]["reasons"][0]["message"] == "changed: one (made anew)"

    def test_drift_that_was_repaired_is_taken_up(self, three):
        world, book = three
        del world.there["one"]
        assert world.run(book).attempts == [
            ("one", 1, False), ("two", 1, True), ("three", 1, True),
        ]  # fmt: skip

    def test_adoption_and_skipping_keep_what_is_known(self, three):
        world, book = three
        made = said(world)["made"]
        assert made.endswith("/one.1")
        world.there["one"] = "otherwise"
        assert world.run(book).decisions["one"] == "adopt"
        assert said(world)["made"] == made

    def test_a_lost_checkpoint_is_no_making(self, three):
        world, book = three
        (world.workspace.checkpoints / "one.json").unlink()
        assert world.run(book).decisions == {"one": "adopt", "two": "skip", "three": "skip"}
        assert world.run(book, force=["one"]).decisions["two"] == "run"

    def test_a_step_that_only_looks_makes_nothing(self, three, monkeypatch):
        world, book = three
        monkeypatch.setattr("tests.runbook.fakes.FakeStep.makes_nothing", True, raising=False)
        world.run(book, force=["one"])
        assert world.run(book, force=["one"]).decisions == {
            "one": "run", "two": "skip", "three": "skip",
        }  # fmt: skip


class TestBegun:
    """An attempt that began is judged by what it was asked, until the step is verified anew."""

    def orphan(self, world, word, finishes=True):
        """Begin an attempt that is asked for a word, and lose its supervisor."""
        world.scripts["one"] = [{"hangs": True}]
        book = world.book({"id": "one", "with": {"word": word}})

        class Lost(BaseException):
            pass

        def listener(event):
            if event["type"] == "attempt.started":
                raise Lost

        with pytest.raises(Lost):
            world.run(book, listener=listener, force=["one"])
        if finishes:
            world.there["one"] = True  # a check that does not see what it was made from
        return book

    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize(
        ("finishes", "now", "decision"),
        [(True, "two", "adopt"), (True, "one", "run"), (False, "two", "run")],
    )
    def test_what_an_orphan_did(self, world, before, finishes, now, decision):
        if before:
            world.run(world.book({"id": "one", "with": {"word": "one"}}))
            del world.there["one"]
        self.orphan(world, "two", finishes)
        world.scripts.clear()
        book = world.book({"id": "one", "with": {"word": now}})
        done = world.run(book)
        assert done.decisions == {"one": decision}
        assert world.workspace.begun.steps() == frozenset()
        assert said(world)["inputs"] == {"word": now}
        assert world.run(book).decisions == {"one": "skip"}

    def test_what_an_orphan_made_is_taken_up(self, world):
        steps = {"id": "one", "with": {"word": "one"}}, {"id": "two"}
        world.run(world.book(*steps))
        self.orphan(world, "one")
        world.there["one"] = "one"
        world.scripts.clear()
        assert world.run(world.book(*steps)).decisions == {"one": "adopt", "two": "run"}

    def test_a_record_that_cannot_be_read_is_of_another(self, world):
        self.orphan(world, "two")
        (world.workspace.begun.folder / "one.json").write_text("{")
        book = world.book({"id": "one", "with": {"word": "two"}})
        world.scripts.clear()
        assert world.run(book).decisions == {"one": "run"}


class TestSuperseding:
    """A run that finds nothing to do is seen where the one before it did not end well."""

    def test_after_success_it_leaves_no_trace(self, world):
        book = world.book({"id": "one"})
        world.run(book)
        assert world.run(book).run is None

    @pytest.mark.parametrize("lost", ["failed", "interrupted", "no record"])
    def test_after_anything_else_it_is_recorded(self, world, lost):
        book = world.book({"id": "one"}, {"id": "two"})
        world.run(book)
        if lost == "failed":
            world.scripts["two"] = [HOPELESS]
            assert world.run(book, force=["two"]).code == 1
            world.workspace.begun.remove("two")
        else:
            file = world.workspace.latest() / "journal.ndjson"
            lines = file.read_bytes().splitlines(keepends=True)
            file.write_bytes(b"" if lost == "no record" else b"".join(lines[:-1]))
        done = world.run(book)
        assert set(done.decisions.values()) == {"skip"}
        record = RunRecord(world.workspace.latest())
        assert record.id == done.run.name
        assert record.exit_code == 0
        assert {name: step.state for name, step in record.steps.items()} == {
            "one": "satisfied", "two": "satisfied",
        }  # fmt: skip
        assert world.run(book).run is None

    def test_what_an_earlier_run_left_open_is_settled_by_the_first_that_can(self, world):
        book = world.book({"id": "one"}, {"id": "two"})
        world.run(book)
        world.scripts["two"] = [HOPELESS]
        world.run(book, force=["two"])
        world.workspace.begun.remove("two")
        part = world.run(book, until="one")
        assert part.events[-1]["unsettled"] == ["two"]
        assert world.run(book).events[-1]["unsettled"] == []
        assert world.run(book).run is None
