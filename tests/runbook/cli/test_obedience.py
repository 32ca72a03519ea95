"""An agent that obeys: whatever command an answer proposes is run as it stands, in the state in
which it was printed, and is one that the program takes and can carry out."""

from __future__ import annotations

import shlex
import shutil

import pytest

from tests.conftest import Cli, commands
from tests.runbook.helpers import write_book

WATCHING = (("status",), ("wait", "--timeout", "1"), ("plan",), ("check",), ("events",))
CHAIN = ({"id": "one"}, {"id": "two"}, {"id": "three"})
ASKING = ({"id": "one"}, {"id": "two", "approve": "Go {{ inputs.word }}?"})
INPUTS = {"word": {"type": "string", "default": "far"}}

# Of each state: the steps of its book, further parts of it, the commands that lead there.
STATES = {
    "never ran": (CHAIN, {}, []),
    "done": (CHAIN, {}, [("run",)]),
    "failed": ((*CHAIN, {"id": "four", "with": {"mood": "fails"}}), {}, [("run",)]),
    "failed, may be retried": (
        (*CHAIN, {"id": "four", "with": {"mood": "fails once"}}, {"id": "five"}),
        {},
        [("run", "--until", "four")],
    ),
    "precondition": (({"id": "one", "with": {"mood": "precondition"}},), {}, [("run",)]),
    "needs unmet": (CHAIN, {}, [("run", "--only", "three")]),
    "drifted": (CHAIN, {}, [("run",), ("destroy", "two", "--yes")]),
    "waits": (ASKING, {"inputs": INPUTS}, [("run", "--set", "word=near")]),
    "other question": (
        ASKING,
        {"inputs": INPUTS},
        [("run",), ("run", "--set", "word=near", "--approve", "two")],
    ),
    "needs an input": (
        ({"id": "one", "with": {"content": "{{ inputs.word }}"}},),
        {"inputs": {"word": {"type": "string"}}},
        [("run", "--set", "word=near")],
    ),
    "to be destroyed": (CHAIN, {}, [("run",), ("destroy",)]),
    "crashed check": (({"id": "one", "with": {"mood": "check crashes"}},), {}, [("run",)]),
}


CASES = [*((state, False) for state in STATES), ("failed", True), ("other question", True)]


@pytest.mark.harness
@pytest.mark.parametrize(("state", "named"), CASES)
def test_every_command_that_is_printed_can_be_obeyed(tmp_path, state, named):
    home = tmp_path / "home"
    home.mkdir()
    cli = Cli(home)
    steps, more, history = STATES[state]
    cli.book = write_book(home, *steps, **more)
    place = ("--workspace", str(home / "elsewhere")) if named else ()
    printed = {}
    for verb, *arguments in [*history, *WATCHING]:
        answer = cli.json(verb, *arguments, *place, code=None)
        if (verb, *arguments) in (*history[-1:], *WATCHING):
            printed |= dict.fromkeys(commands(answer))
    assert printed
    snapshot = tmp_path / "snapshot"
    shutil.copytree(home, snapshot, symlinks=True)
    for command in printed:
        assert not named or "--workspace" in command, command
        shutil.rmtree(home)
        shutil.copytree(snapshot, home, symlinks=True)
        _, verb, *arguments = shlex.split(command)
        book, cli.book = cli.book, None
        done = cli.run(verb, *arguments, code=None)
        cli.book = book
        assert done.returncode not in (2, 70), (command, done.stderr)
        assert not (named and (home / "workspace").exists()), f"{command}: in another workspace"
