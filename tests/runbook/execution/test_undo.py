"""`destroy` undoes what was made, whatever the document says now."""

from __future__ import annotations

import json
import time

import pytest

from tests.runbook.helpers import write_book

NAME = {"name": {"type": "string", "default": "plain"}, "on": {"type": "boolean", "default": True}}
MAKES = {"id": "one", "with": {"file": "{{ inputs.name }}"}}
OTHER = {"id": "two", "needs": ["one"]}


def book(cli, *steps, **more):
    cli.book = write_book(cli.home, *steps, inputs=NAME, **more)


def left(cli):
    """What steps have made that is still there."""
    return sorted(p.name for p in cli.workspace.iterdir() if p.name not in (".runbook", "diary"))


def records(cli):
    state = cli.workspace / ".runbook"
    return sorted(p.stem for name in ("checkpoints", "begun") for p in state.glob(f"{name}/*.json"))


# What becomes of the document between `run --set name=x` and `destroy`: steps, arguments.
CHANGES = {
    "nothing": ([MAKES, OTHER], []),
    "another value of the input": ([MAKES, OTHER], ["--set", "name=y"]),
    "inactive now": ([{**MAKES, "when": "inputs.on"}, OTHER], ["--set", "on=false"]),
    "both inactive": (
        [{**MAKES, "when": "inputs.on"}, {**OTHER, "when": "inputs.on"}],
        ["--set", "on=false"],
    ),
    "another file": ([{**MAKES, "with": {"file": "elsewhere"}}, OTHER], []),
    "renamed": ([{**MAKES, "id": "uno"}, {**OTHER, "needs": ["uno"]}], []),
    "removed": ([{"id": "last"}], []),
    "another kind": (
        [{"id": "one", "uses": "command", "with": {"run": "true"}}, OTHER],
        [],
    ),
    "another order": ([{**OTHER, "needs": []}, MAKES], []),
}


@pytest.mark.harness
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_made_goes(cli, change):
    book(cli, MAKES, OTHER)
    cli.json("run", "--set", "name=x")
    assert left(cli) == ["two", "x"]
    steps, arguments = CHANGES[change]
    book(cli, *steps)
    planned = cli.json("destroy", *arguments, code=5)
    assert {"one", "two"} <= {step["id"] for step in planned["steps"]}
    done = cli.json("destroy", "--yes", *arguments)
    assert [s["state"] for s in done["steps"]] == ["undone"] * len(done["steps"])
    assert left(cli) == []
    assert records(cli) == []
    assert cli.json("destroy", "--yes", *arguments)["steps"] == []


def test_in_any_order_and_again(cli):
    book(cli, MAKES, OTHER)
    cli.json("run", "--set", "name=x")
    cli.json("destroy", "one", "--yes")
    assert left(cli) == ["two"]
    cli.json("destroy", "one", "--yes")
    cli.json("destroy", "two", "--yes")
    assert left(cli) == []


def test_a_step_that_is_gone_can_be_named(cli):
    book(cli, MAKES, OTHER)
    cli.json("run", "--set", "name=x")
    book(cli, {"id": "last"})
    assert cli.json("destroy", "nonsense", "--yes", code=2)["error"]["code"] == "unknown_step"
    assert [s["id"] for s in cli.json("destroy", "one", "--yes")["steps"]] == ["one"]
    assert left(cli) == ["two"]


def test_an_attempt_that_did_not_end_is_undone_of_both_origins(cli):
    """First made as x, then killed while it was made as y: both go."""
    book(cli, MAKES)
    cli.json("run", "--set", "name=x")
    book(cli, {**MAKES, "with": {"file": "{{ inputs.name }}", "mood": "hangs"}})
    process = cli.start("run", "--set", "name=y")
    deadline = time.monotonic() + 60
    while (cli.workspace / "diary").read_text().count("one began") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    cli.json("cancel")
    (cli.workspace / "y").write_text("half")
    cli.json("destroy", "--yes")
    assert left(cli) == []
    assert records(cli) == []


def test_a_damaged_checkpoint_is_no_order_to_remove(cli):
    book(cli, MAKES)
    cli.json("run", "--set", "name=x")
    file = cli.workspace / ".runbook" / "checkpoints" / "one.json"
    record = json.loads(file.read_text())
    record["inputs"]["file"] = "precious"
    file.write_text(json.dumps(record))
    (cli.workspace / "precious").touch()
    cli.json("destroy", "--set", "name=x", "--yes")
    assert left(cli) == ["precious"]
