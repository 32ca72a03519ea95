"""What plan and check say of steps, in process: decisions, work, questions, what is not known."""

from __future__ import annotations

import pytest

from runbook.document import template
from runbook.planning.evaluate import Evaluator
from runbook.planning.plan import plan
from runbook.planning.planner import select
from runbook.protocol import Check, Reason, StepFailure, Work


def planned(world, book, **chosen):
    answer = plan(book, world.workspace, select(book["steps"], **chosen), deep=False)
    return answer, {step["id"]: step for step in answer["steps"]}


def told(world, *steps, **chosen):
    """The decision on each step, and the code of its first reason."""
    _, found = planned(world, world.book(*steps), **chosen)
    return {
        name: (step["decision"], step["reasons"][0]["code"] if step["reasons"] else "")
        for name, step in found.items()
    }


TWO = {"id": "one"}, {"id": "two"}
CASES = [
    ("nothing is there", {}, {}, {"one": ("run", "never_ran"), "two": ("later", "upstream")}),
    ("found", {"one": ""}, {}, {"one": ("adopt", "adopted"), "two": ("run", "never_ran")}),
    ("a part", {}, {"until": "one"}, {"one": ("run", "never_ran")}),
    (
        "outside the selection",
        {},
        {"only": ["two"]},
        {"one": ("unmet", "missing"), "two": ("later", "upstream")},
    ),
    (
        "forced",
        {"one": "", "two": ""},
        {"force": ["one"]},
        {"one": ("run", "forced"), "two": ("later", "upstream")},
    ),
    (
        "its check is broken",
        {"one": SystemExit(0)},
        {},
        {"one": ("run", "never_ran"), "two": ("later", "upstream")},
    ),
    (
        "its check refuses",
        {"one": StepFailure("no", code="refused")},
        {},
        {"one": ("run", "never_ran"), "two": ("later", "upstream")},
    ),
]


@pytest.mark.parametrize(("there", "chosen", "expected"), [c[1:] for c in CASES],
                         ids=[c[0] for c in CASES])  # fmt: skip
def test_decisions_before_anything_ran(world, there, chosen, expected):
    world.there.update(there)
    assert told(world, *TWO, **chosen) == expected
    assert not world.workspace.root.exists() or not world.workspace.checkpointed()


def test_after_a_run_nothing_would_run(world):
    book = world.book(*TWO)
    world.run(book)
    answer, found = planned(world, book)
    assert answer["would_run"] is False
    assert [step["decision"] for step in found.values()] == ["skip", "skip"]


def test_work_is_added_up_and_questions_are_shown(world):
    question = template.compile_value("Take {{ check.work.bytes }}?")
    for name, cost in (("one", Work(5, 1.5, 7)), ("two", Work(6, 2.5, 8))):
        world.there[name] = Check.unsatisfied(Reason("missing", "missing"), work=cost)
    steps = ({"id": name, "needs": [], "approve": question} for name in ("one", "two"))
    answer, found = planned(world, world.book(*steps))
    assert {k: answer["work"][k] for k in ("bytes", "seconds", "disk")} == {
        "bytes": 11, "seconds": 4.0, "disk": 15,
    }  # fmt: skip
    assert [step["approve"] for step in found.values()] == ["Take 5?", "Take 6?"]


class TestLook:
    """What an evaluator finds of a step."""

    def look(self, world, **step):
        book = world.book({"id": "one", **step})
        return Evaluator(book, world.workspace).look(book["steps"][0])

    @pytest.mark.parametrize(
        ("found", "ok", "broken", "code"),
        [
            ("here", True, False, ""),
            (None, False, False, "missing"),
            (StepFailure("no", code="refused"), False, False, "refused"),
            (StepFailure("no", reasons=[Reason("why", "why")]), False, False, "why"),
            (KeyError("x"), False, True, "check_crashed"),
            (SystemExit(0), False, True, "check_crashed"),
        ],
    )
    def test_an_answer_of_every_kind(self, world, found, ok, broken, code):
        world.workspace.create()
        world.there["one"] = found
        look = self.look(world)
        assert (look.check.ok, look.broken) == (ok, broken)
        assert [reason.code for reason in look.check.reasons] == ([code] if code else [])
        assert look.inputs == {"word": ""}

    def test_ctrl_c_is_no_answer(self, world):
        world.there["one"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            self.look(world)

    def test_a_false_when_asks_nothing(self, world):
        world.there["one"] = AssertionError("it was asked")
        look = self.look(world, when=False)
        assert not look.active
        assert look.inputs is None

    def test_inputs_that_are_not_known_are_why(self, world):
        given = template.compile_value({"word": "{{ steps.none.outputs.word }}"})
        look = self.look(world, **{"with": given, "static": False})
        assert look.inputs is None
        assert look.check.reasons[0].code == "template_undefined"

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({}, ()),
            ({"with": {"word": "b"}}, ("with",)),
            ({"uses": "other"}, ("code",)),
        ],
    )
    def test_what_changed_since_the_checkpoint(self, world, change, parts):
        world.run(world.book({"id": "one", "with": {"word": "a"}}))
        assert self.look(world, **{"with": {"word": "a"}, **change}).changed() == parts
