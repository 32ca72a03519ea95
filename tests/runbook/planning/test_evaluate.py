"""A look at a step, part by part: what it is rendered to, asked with, and known by."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

import runbook
from runbook.document import template
from runbook.planning import apart, asking, evaluate
from runbook.planning.context import lock_places
from runbook.planning.evaluate import Evaluator
from runbook.planning.look import digest
from runbook.protocol import Check, Reason, StepFailure, Work

render = template.compile_value


class Kind:
    """A step that tells what it was given."""

    version = "7"

    class Inputs(BaseModel):
        n: int = 3
        words: list[str] = []

    class Outputs(BaseModel):
        pass

    def check(self, ctx):
        self.given = ctx
        return Check.satisfied({})


@pytest.fixture
def kind(monkeypatch):
    made = Kind()
    loaded = []
    monkeypatch.setattr(
        evaluate, "load_step", lambda uses, folder: loaded.append((uses, folder)) or made
    )
    made.loaded = loaded
    return made


@pytest.fixture
def evaluator(world):
    world.workspace.create()

    def make(**step):
        given = {"inputs": {"x": 5}, "secrets": ["S"], "source": "/b.yaml"}
        book = world.book({"id": "one", **step}, **given)
        return Evaluator(book, world.workspace), book["steps"][-1]

    return make


def test_what_a_check_is_given(evaluator, kind, world):
    made, step = evaluator(**{"with": render({"n": "{{ inputs.x }}"}), "static": False})
    progress = object()
    look = made.look(step, True, progress)
    ctx = kind.given
    assert ctx is look.context
    assert (ctx.step, ctx.workspace, ctx.deep) == ("one", world.workspace.root, True)
    assert ctx.inputs == SimpleNamespace(n=5, words=[])
    assert ctx.facts is made.facts and ctx.secrets == {"S"} and ctx.on_progress is progress
    assert ctx.cache == evaluate.default_cache()
    assert look.raw == {"n": 5} and look.inputs == {"n": 5, "words": []}
    assert look.check == Check.satisfied({}) and not look.broken and look.lasting
    assert not made.look(step).context.deep
    assert not made.context(step, SimpleNamespace()).deep
    assert kind.loaded == [("fake", Path("/"))], "once"


def test_what_templates_see(evaluator, kind, world):
    text = "{{ workspace }} {{ steps.zero.outputs.a }} {{ facts.arch }}"
    made, step = evaluator(**{"with": render({"words": [text]}), "static": False})
    made.record_outputs("zero", {"a": "A"})
    made.facts.learn({"arch": "z80"})
    assert made.look(step).inputs["words"] == [f"{world.workspace.root} A z80"]


@pytest.mark.parametrize("when", [None, True, False])
def test_what_is_not_to_run_is_not_asked(evaluator, kind, when):
    made, step = evaluator(when=when)
    look = made.look(step)
    assert look.active is (when is not False)
    assert hasattr(kind, "given") is (when is not False)


def test_inputs_are_recorded_as_plain_data(evaluator, kind, monkeypatch):
    class Inputs(Kind.Inputs):
        place: Path
        ports: frozenset[int]

    monkeypatch.setattr(kind, "Inputs", Inputs, raising=False)
    made, step = evaluator(**{"with": {"place": "/a", "ports": [1]}})
    assert made.look(step).inputs == {"n": 3, "words": [], "place": "/a", "ports": [1]}


def test_a_check_finds_the_book_s_lock_and_the_failures_of_its_kind(evaluator, kind, world):
    made, step = evaluator()
    ctx = made.look(step).context
    assert ctx.locks == lock_places("/b.yaml", world.workspace.root)
    assert ctx.uses == "fake"


def test_what_a_step_is_known_by(evaluator, kind):
    made, step = evaluator(needs=["zero", "none"])
    made.record_outputs("zero", {"a": 1, "process": {"pid": 1}}, made="r/zero.1")
    assert made.look(step).fingerprint == {
        "with": {},
        "code": "fake@7",
        "files": None,
        "needs": {"zero": digest({"a": 1}), "none": None},
        "made": {"zero": "r/zero.1", "none": ""},
        "facts": {},
    }


def test_what_is_known_of_facts_and_files(evaluator, kind, tmp_path):
    (tmp_path / "b").write_bytes(b"B")
    (tmp_path / "a").write_bytes(b"A")
    kind.facts = ("f",)
    kind.files = lambda inputs: [tmp_path / "b", tmp_path / "a"] if inputs.n == 3 else []
    made, step = evaluator()
    made.facts.learn({"f": 9})
    fingerprint = made.look(step).fingerprint
    assert fingerprint["facts"] == {"f": 9}
    assert fingerprint["files"] == hashlib.sha256(b"a\0A\0b\0B\0").hexdigest()


def test_a_step_of_the_user_s_own_is_known_by_its_file(evaluator, kind, tmp_path, monkeypatch):
    (tmp_path / "s:t.py").write_bytes(b"code")
    made, step = evaluator(uses="s:t.py:Kind", folder=str(tmp_path))
    asked = []
    monkeypatch.setattr(apart, "ask", lambda *given: asked.append(given) or Check.satisfied({}))
    look = made.look(step)
    digest_of_file = hashlib.sha256(b"code").hexdigest()[:16]
    assert look.fingerprint["code"] == f"s:t.py:Kind@7+{digest_of_file}"
    assert asked == [(kind, look.context, 60.0, None)]


def test_outputs_are_digested_without_the_process(evaluator, kind):
    made, _ = evaluator()
    known = made.record_outputs("a", {"x": 1, "process": 2})
    assert known == digest({"x": 1})
    assert made.outputs == {"a": {"x": 1, "process": 2}}
    assert made.record_outputs("a", {"x": 1}, "known before") == "known before"


@pytest.mark.parametrize(
    ("own", "timeout", "deep", "limit"),
    [
        (None, None, False, 60.0),
        (None, 5.0, False, 5.0),
        (None, 500.0, False, 60.0),
        (200.0, None, False, 200.0),
        (200.0, 90.0, False, 90.0),
        (0, None, False, 60.0),
        (200.0, 90.0, True, math.inf),
    ],
)
def test_the_limit_of_a_check(evaluator, kind, monkeypatch, own, timeout, deep, limit):
    asked = []
    monkeypatch.setattr(asking, "ask", lambda *given: asked.append(given) or Check.satisfied({}))
    if own is not None:
        kind.check_limit = lambda inputs: own if inputs.n == 3 else None
    made, step = evaluator(timeout=timeout)
    look = made.look(step, deep)
    assert asked == [(kind, look.context, limit, None)]


def checkpointed(world, **changed):
    """A checkpoint of the step as it is now, but for what is changed."""
    fingerprint = {"with": {}, "code": "fake@7", **changed.pop("fingerprint", {})}
    record = {"package": runbook.__version__, "inputs": {"n": 8, "words": []},
              "fingerprint": fingerprint, "outputs": {"o": 1}, **changed}  # fmt: skip
    world.workspace.checkpoint = lambda name: record


@pytest.mark.parametrize(
    ("changed", "n", "known"),
    [
        ({}, 8, {"o": 1}),
        ({"package": "another"}, 3, {"o": 1}),
        ({"fingerprint": {"with": {"n": 3}}}, 3, {"o": 1}),
        ({"fingerprint": {"code": "fake@6"}}, 3, None),
    ],
)
def test_what_a_checkpoint_spares(evaluator, kind, world, monkeypatch, changed, n, known):
    asked = []
    monkeypatch.setattr(asking, "ask", lambda *given: asked.append(given) or Check.satisfied({}))
    checkpointed(world, **changed)
    made, step = evaluator()
    look = made.look(step)
    assert look.inputs["n"] == n
    assert asked[0][3] == known


def test_inputs_that_are_invalid_are_told(evaluator, kind):
    made, step = evaluator(**{"with": {"n": "x", "words": ["a", 1]}})
    (reason,) = made.look(step).check.reasons
    assert reason.code == "invalid_inputs"
    assert reason.message.startswith("with.n: Input should be a valid integer")
    assert reason.message.endswith("(it is 'x')")
    assert reason.remedy == "correct the document, or the input that it comes from"
    made, step = evaluator(**{"with": {"words": ["a", 1]}})
    (reason,) = made.look(step).check.reasons
    assert reason.message == "with.words.1: Input should be a valid string (it is 1)"
    step["with"] = {"n": "x", "words": ["a", 1]}
    with pytest.raises(StepFailure) as refused:
        look = evaluate.Look(step)
        look.raw = step["with"]
        made._inputs(look, kind, "v")
    first, second = refused.value.cause.split("\n")
    assert first.startswith("with.n: Input should be a valid integer")
    assert second == "with.words.1: Input should be a valid string"
    assert refused.value.where == "step one"


def test_a_step_that_was_begun_is_made_by_that_attempt(evaluator, kind, world):
    origin = {"uses": "fake", "folder": "/", "inputs": {}}
    world.workspace.begun.write("zero", "r/zero.3", "f", origin)
    book = world.book({"id": "zero"}, {"id": "one"})
    made = Evaluator(book, world.workspace)
    assert made.look(book["steps"][0]).begun == {"attempt": "r/zero.3", "fingerprint": "f"}
    assert made.look(book["steps"][1]).fingerprint["made"] == {"zero": "r/zero.3"}
    assert made.look(book["steps"][1]).begun is None


def test_a_step_that_only_looks_lasts_not(evaluator, kind):
    kind.makes_nothing = True
    made, step = evaluator()
    assert made.look(step).lasting is False


def test_a_crash_is_written_into_the_state_folder(evaluator, kind, world):
    kind.check = lambda ctx: 1 / 0
    made, step = evaluator()
    look = made.look(step)
    (reason,) = look.check.reasons
    assert reason.code == "check_crashed" and look.broken
    assert reason.message == "fake: its check crashed: ZeroDivisionError: division by zero"
    assert str(world.workspace.state) in reason.remedy


@pytest.mark.parametrize("stop", [KeyboardInterrupt, asking.Stopped])
def test_what_stops_a_run_stops_a_look(evaluator, kind, stop):
    def stops(*_):
        raise stop

    kind.check = kind.foresee = stops
    made, step = evaluator()
    with pytest.raises(stop):
        made.look(step)
    step["when"] = True
    with pytest.raises(stop):
        made.foresee(step)


def test_a_failure_is_told_with_its_cause_where_the_check_is_broken(evaluator, kind):
    def fails(code):
        def check(ctx):
            raise StepFailure("no", code=code, cause="so", remedy="mend it")

        return check

    made, step = evaluator()
    for code, message in (("refused", "no"), ("invalid_outputs", "fake: no (so)")):
        kind.check = fails(code)
        look = made.look(step)
        assert look.check.reasons == (Reason(code, message, "mend it"),)
        assert look.broken is (code != "refused")


class TestForesee:
    def foresee(self, evaluator, kind, monkeypatch=None, says=(), **step):
        asked = []

        def foresee(given, unknown, facts):
            asked.append((given, unknown, facts))
            if isinstance(says, BaseException):
                raise says
            return says

        kind.foresee = foresee
        made, compiled = evaluator(**{"when": True, **step})
        reasons = made.foresee(compiled)
        return made, reasons, asked

    def test_what_it_is_given(self, evaluator, kind):
        given = render({"n": "{{ inputs.x }}", "words": "{{ steps.zero.outputs.a }}"})
        said = Reason("rule", "no")
        made, reasons, asked = self.foresee(
            evaluator, kind, says=[said], **{"with": given, "static": False}
        )
        assert reasons == (said,)
        assert asked == [({"n": 5}, frozenset({"words"}), made.facts)]

    def test_what_is_not_to_run_is_not_asked(self, evaluator, kind):
        _, reasons, asked = self.foresee(evaluator, kind, when=False)
        assert reasons == () and asked == []

    def test_a_kind_may_have_nothing_to_say(self, evaluator, kind):
        made, step = evaluator(when=True)
        assert made.foresee(step) == ()
        assert made.foresees(step) is False
        kind.foresee = None
        assert made.foresees(step) is True

    def test_a_kind_that_does_not_load_says_nothing(self, evaluator, monkeypatch):
        def fails(uses, folder):
            raise StepFailure("no such step")

        monkeypatch.setattr(evaluate, "load_step", fails)
        made, step = evaluator(when=True)
        assert made.foresees(step) is False
        assert made.foresee(step) == ()

    def test_a_failure_is_no_reason_but_a_defect_is(self, evaluator, kind, world):
        assert self.foresee(evaluator, kind, says=StepFailure("no", code="refused"))[1] == ()
        broken = StepFailure("no", code="check_timeout")
        assert self.foresee(evaluator, kind, says=broken)[1] == (
            Reason("check_timeout", "fake: no"),
        )
        (reason,) = self.foresee(evaluator, kind, says=ZeroDivisionError("x"))[1]
        assert reason.message == "fake: its foresee crashed: ZeroDivisionError: x"
        assert str(world.workspace.state) in reason.remedy

    @pytest.mark.parametrize(("timeout", "limit"), [(None, 60.0), (5.0, 5.0), (500.0, 60.0)])
    def test_its_limit(self, evaluator, kind, world, monkeypatch, timeout, limit):
        asked = []
        monkeypatch.setattr(asking, "foresee", lambda *given: asked.append(given) or ())
        monkeypatch.setattr(apart, "foresee", lambda *given: asked.append(given) or ())
        made, _, _ = self.foresee(evaluator, kind, timeout=timeout)
        ahead = ({}, frozenset(), made.facts)
        assert asked == [(kind, ahead, limit)]
        made.kind = lambda step: (kind, "v")
        step = {"uses": "a.py:B", "with": {}, "when": True, "timeout": timeout}
        made.foresee(step)
        assert asked[1] == (kind, ahead, limit, world.workspace.state)


def test_a_question_is_asked_of_the_work(evaluator, kind):
    made, step = evaluator(approve=render("{{ check.work }} for {{ inputs.x }}"))
    assert made.approval(step, Work(1, 2.5, 3)) == '{"bytes": 1, "seconds": 2.5, "disk": 3} for 5'


def test_a_question_that_cannot_be_rendered_is_told(evaluator, kind):
    made, step = evaluator(approve=render("{{ steps.none.outputs.a }}"), line=12)
    with pytest.raises(StepFailure) as refused:
        made.approval(step, Work())
    assert refused.value.message.startswith("the question of step one cannot be asked: ")
    assert refused.value.where == "/b.yaml:12"


def test_why_a_step_does_not_hold():
    step = {"uses": "u"}
    own = (Reason("a", "a"), Reason("b", "b"))
    assert evaluate._why(step, StepFailure("m", reasons=own)) == own
    assert evaluate._why(step, StepFailure("m", code="c", remedy="r", cause="x")) == (
        Reason("c", "m", "r"),
    )
    assert evaluate._why(step, StepFailure("m", code="check_timeout")) == (
        Reason("check_timeout", "u: m"),
    )
