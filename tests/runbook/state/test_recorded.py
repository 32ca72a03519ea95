"""What the user said and was asked."""

from __future__ import annotations

import hashlib

import pytest

from runbook.files import write_sealed
from runbook.state import recorded
from runbook.state.recorded import Recorded


def test_what_is_recorded_is_read(tmp_path):
    assert recorded.read(tmp_path) == Recorded({}, {})
    recorded.write(tmp_path, Recorded({"a": "1"}, {"start": "one"}))
    assert (tmp_path / "inputs.json").exists()
    assert recorded.read(tmp_path) == Recorded({"a": "1"}, {"start": "one"})


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
        recorded.ask(tmp_path, step, question)
    digest = recorded.question_digest
    assert recorded.asked(tmp_path) == {"a": digest("z"), "b": digest("y")}
    write_sealed(tmp_path / "asked.json", ["a"])
    assert recorded.asked(tmp_path) == {}
