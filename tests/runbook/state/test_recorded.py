"""What the user said and was asked."""

from __future__ import annotations

import hashlib

import pytest

from runbook.files import write_sealed
from runbook.protocol import Work
from runbook.state import recorded
from runbook.state.recorded import Recorded

SAID = Recorded({"a": "1"}, {"start": "one"}, ("a=f", "b=g"))


def test_what_is_recorded_is_read(tmp_path):
    assert recorded.read(tmp_path) == Recorded({}, {})
    recorded.write(tmp_path, SAID)
    assert recorded.read(tmp_path) == SAID


@pytest.mark.parametrize("name", ["inputs.json", "inputs.copy.json"])
@pytest.mark.parametrize("damage", ["", "{", '{"inputs": {}, "chosen": {}}'])
def test_one_damaged_record_loses_nothing(tmp_path, name, damage):
    recorded.write(tmp_path, SAID)
    (tmp_path / name).write_text(damage)
    assert recorded.read(tmp_path) == SAID


@pytest.mark.parametrize("value", [[], {"inputs": [], "chosen": {}}, {"inputs": {}}])
def test_a_record_of_another_form_gives_way_to_its_copy(tmp_path, value):
    recorded.write(tmp_path, SAID)
    write_sealed(tmp_path / "inputs.json", value)
    assert recorded.read(tmp_path) == SAID


@pytest.mark.parametrize(("value", "approved"), [([1, "b"], ("1", "b")), ("ab", ()), (None, ())])
def test_what_was_approved(tmp_path, value, approved):
    write_sealed(tmp_path / "inputs.json", {"inputs": {}, "chosen": {}, "approved": value})
    assert recorded.read(tmp_path) == Recorded({}, {}, approved)


@pytest.mark.parametrize(
    ("value", "inputs", "chosen"),
    [
        ([], {}, {}),
        ({}, {}, {}),
        ({"inputs": {"a": "1"}}, {}, {}),
        ({"chosen": {"start": "one"}}, {}, {}),
        ({"inputs": {"a": "1"}, "chosen": []}, {}, {}),
        ({"inputs": [], "chosen": {"start": "one"}}, {}, {}),
        ({"inputs": {"a": 1, "b": "2"}, "chosen": {"x": 1}}, {"b": "2"}, {"x": 1}),
    ],
)
def test_what_is_not_as_it_was_written_is_nothing(tmp_path, value, inputs, chosen):
    write_sealed(tmp_path / recorded.INPUTS, value)
    assert recorded.read(tmp_path) == Recorded(inputs, chosen)


def test_a_question_is_named_by_its_digest():
    assert recorded.question_digest("go on?") == hashlib.sha256(b"go on?").hexdigest()[:12]
    assert len(recorded.question_digest("\ud800")) == 12


def test_what_approves():
    asked = [{"id": "a", "question": "x"}, {"id": "b", "question": "y"}]
    x, y = map(recorded.question_digest, "xy")
    assert recorded.approvals(asked) == ("--approve", f"a={x}", "--approve", f"b={y}")
    assert recorded.approvals([]) == ()


def test_the_last_question_of_each_step_is_known(tmp_path):
    assert recorded.asked(tmp_path) == {}
    for step, question in (("a", "x"), ("b", "y"), ("a", "z")):
        recorded.ask(tmp_path, step, question, Work(3, 1.5))
    digest = recorded.question_digest
    asked = {"a": (digest("z"), Work(3, 1.5)), "b": (digest("y"), Work(3, 1.5))}
    assert recorded.asked(tmp_path) == asked
    write_sealed(tmp_path / "asked.json", ["a"])
    assert recorded.asked(tmp_path) == {}
    entry = {"digest": "d", "work": {"bytes": 1}}
    kept = {"a": entry, "b": "d", "c": {"digest": "d"}, "d": {**entry, "work": {"more": 1}}}
    write_sealed(tmp_path / "asked.json", kept)
    assert recorded.asked(tmp_path) == {"a": ("d", Work(1))}


def test_a_run_that_goes_on_is_given_approvals(tmp_path):
    assert recorded.approved_of(tmp_path, "r1") == {}
    recorded.approve(tmp_path, "r1", {"a": "f"})
    recorded.approve(tmp_path, "r1", {"b": "g"})
    assert recorded.approved_of(tmp_path, "r1") == {"a": "f", "b": "g"}
    assert recorded.approved_of(tmp_path, "r2") == {}
    recorded.approve(tmp_path, "r1", {"a": "h"})
    assert recorded.approved_of(tmp_path, "r1") == {"a": "h", "b": "g"}
    recorded.approve(tmp_path, "r2", {"c": "i"})
    assert recorded.approved_of(tmp_path, "r2") == {"c": "i"}, "those of another are none"


@pytest.mark.parametrize("value", [[], {}, {"run": "r"}, {"run": "r", "steps": ["a"]}])
def test_approvals_of_another_form_are_none(tmp_path, value):
    write_sealed(tmp_path / "approved.json", value)
    assert recorded.approved_of(tmp_path, "r") == {}
