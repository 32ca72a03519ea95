"""A coding agent that was told "set this up" and has read the loop of AGENTS.md, nothing else.

It takes every command from an answer: from the remedies of its errors, then from `next`. It knows
no path, no process and no step. What a remedy asks for in words it passes on to the person.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Shell = Callable[[str], tuple[int, str]]
"""Runs a command line; its exit code, and all that it printed."""
COMMAND = re.compile(r"`(runbook [^`]+)`")
MOST_CALLS = 120
LONGEST_CALL = 600
"""Seconds after which its shell is cut off."""
PATIENCE = 4
"""How often in a row an agent meets the same failure before it gives up."""


def shell(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> tuple[int, str]:
    """What the shell of a coding agent gives: the exit code and all that was printed."""
    done = subprocess.run(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_CALL,
    )
    return done.returncode, done.stdout


class Astray(AssertionError):
    """The answers lead the agent nowhere."""


@dataclass
class Call:
    command: str
    code: int
    size: int
    seconds: float
    answer: dict[str, Any]


@dataclass
class Agent:
    """`tell` passes words on to the person, and gives whether that one has done something about
    it; `ask` puts a question, and gives whether the answer is yes."""

    shell: Shell
    tell: Callable[[str], bool]
    ask: Callable[[str], bool]
    calls: list[Call] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    run: str = ""
    alike: int = 0
    """Failures in a row that were the same."""
    last: str = ""

    def set_up(self, book: str) -> dict[str, Any]:
        """From nothing to served: what is served."""
        self.call(f"runbook plan {book} --brief")
        command = self.run = f"runbook run {book} --detach --brief"
        while len(self.calls) < MOST_CALLS:
            call = self.call(command)
            answer = call.answer
            if call.code == 0 and answer.get("served"):
                return answer["served"]
            command = self.following(call)
        raise Astray(f"{len(self.calls)} calls, and nothing is served")

    def call(self, command: str) -> Call:
        """Run a command as it stands."""
        words = command.split()
        begun = time.monotonic()
        code, printed = self.shell(command)
        seconds = time.monotonic() - begun
        if not printed.strip():  # cut off in the middle, with all that ran
            code, printed = self.shell(command)
        call = Call(command, code, len(printed.encode()), seconds, json.loads(printed))
        self.calls.append(call)
        if words[1] == "run":
            self.tried.clear()
        self.tried.add(command)
        return call

    def following(self, call: Call) -> str:
        """What to run next, by the table of exit codes."""
        answer, code = call.answer, call.code
        if code == 70:
            raise Astray(f"a defect: {answer['error']}")
        following = list(answer.get("next", ()))
        if code == 5:
            if not self.ask(answer["error"]["message"]):
                raise Astray(f"the person refuses: {json.dumps(answer['error'])}")
            return following[0]
        if code in (1, 2, 3):
            return self.mending(answer, following)
        if not following:
            raise Astray(f"no command follows: {answer}")
        if code in (6, 7):
            return following[0]
        return self._first(following, answer)

    def _first(self, commands: list[str], answer: dict[str, Any]) -> str:
        """The first command that was not tried since the last `run`."""
        for command in commands:
            if command not in self.tried or command.split()[1] in ("run", "wait"):
                return command
        raise Astray(f"nothing is left to try after {json.dumps(answer)}")

    def mending(self, answer: dict[str, Any], following: list[str]) -> str:
        """What mends a failure; the person is told what no command does."""
        errors = answer.get("errors") or [answer["error"]]
        codes = json.dumps([error["code"] for error in errors])
        self.alike = self.alike + 1 if codes == self.last else 0
        self.last = codes
        if self.alike >= PATIENCE:
            raise Astray(f"the same again and again: {json.dumps(errors)}")
        commands, done = [], False
        for error in errors:
            remedy = error.get("remedy", "")
            if remedy.startswith("runbook "):
                commands.append(remedy)
            elif remedy:
                commands += COMMAND.findall(remedy)
                done |= self.tell("\n".join([error["message"], error.get("cause", ""), remedy]))
        if done and not commands:
            return self.run  # which is always right
        return self._first([*commands, *following], answer)

    @property
    def read(self) -> int:
        """Bytes of all answers."""
        return sum(call.size for call in self.calls)

    def codes(self) -> set[str]:
        """The codes of all errors that were met."""
        found = set()
        for call in self.calls:
            for error in [call.answer.get("error"), *(call.answer.get("errors") or ())]:
                found |= {error["code"]} if error else set()
        return found
