"""A step may refuse its inputs before the steps that it needs have run."""

from __future__ import annotations

import pytest

from runbook.document import template
from runbook.protocol import StepFailure
from tests.runbook.helpers import write_book

READ = "{{ steps.one.outputs.content }}"


@pytest.fixture
def chain(cli):
    """one; two, which needs the outputs of one and refuses what it is to do."""
    cli.book = write_book(
        cli.home,
        {"id": "one"},
        {"id": "two", "with": {"content": READ, "mood": "refuses"}},
        {"id": "three"},
    )
    return cli


def test_the_plan_says_so(chain):
    answer = chain.json("plan", code=3)
    assert answer["error"]["code"] == "rule"
    assert answer["error"]["message"].startswith("step two refuses: it refuses")
    decisions = {step["id"]: step["decision"] for step in answer["steps"]}
    assert decisions == {"one": "run", "two": "unmet", "three": "later"}
    reason = answer["steps"][1]["reasons"][0]
    assert reason["code"] == "rule"
    assert reason["message"] == "it refuses, and does not know ['content']"


def test_a_run_ends_before_anything_runs(chain):
    answer = chain.json("run", code=3)
    assert answer["error"]["code"] == "rule"
    assert answer["error"]["step"] == "two"
    assert answer["error"]["remedy"] == "cheer it up"
    assert not (chain.workspace / "one").exists()
    assert {step["id"]: step["state"] for step in chain.json("status", code=None)["steps"]} == {
        "one": "blocked",
        "two": "failed",
        "three": "blocked",
    }


def test_what_an_earlier_step_tells_is_heeded_before_the_next_runs(cli):
    mood = "{{ 'refuses' if steps.one.outputs.content else 'well' }}"
    cli.book = write_book(
        cli.home, {"id": "one"}, {"id": "two"}, {"id": "three", "with": {"mood": mood}}
    )
    answer = cli.json("run", code=3)
    assert answer["error"]["step"] == "three"
    assert (cli.workspace / "one").exists()
    assert not (cli.workspace / "two").exists()


def test_what_is_not_to_run_is_not_asked(chain):
    chain.json("run", "--until", "one")
    assert (chain.workspace / "one").exists()


def test_a_run_in_which_nothing_runs_asks_nobody(cli):
    cli.book = write_book(cli.home, {"id": "one"}, {"id": "two", "with": {"content": READ}})
    cli.json("run")
    cli.book = write_book(
        cli.home, {"id": "one"}, {"id": "two", "when": False, "with": {"mood": "refuses"}}
    )
    cli.json("run")


SCOPE = {"inputs": {"a": 1}, "steps": {}}


@pytest.mark.parametrize(
    "value, given, unknown",
    [
        ({"a": "{{ inputs.a }}", "b": "{{ steps.x.outputs.y }}"}, {"a": 1}, {"b"}),
        (["{{ steps.x.outputs.y }}", {"k": "v"}], [{"k": "v"}], {"0"}),
        ({"m": {"n": ["{{ steps.x.z }}", 2]}}, {"m": {"n": [2]}}, {"m.n.0"}),
        ({"t": "{{ inputs.a + 1 }}", "u": "{{ steps.x.y + 1 }}"}, {"t": 2}, {"u"}),
        ({"p": {"$ref": 1}}, {"p": {"$ref": 1}}, set()),
    ],
)
def test_what_is_known_of_a_value(value, given, unknown):
    assert template.known(template.compile_value(value), SCOPE) == (given, unknown)


def test_a_value_of_which_nothing_is_known():
    with pytest.raises(StepFailure):
        template.known(template.compile_value("{{ steps.x.outputs.y }}"), SCOPE)
