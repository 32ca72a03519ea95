"""Finds and reads the logs of attempts."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from runbook.errors import USAGE, RunbookError
from runbook.files import read_regular
from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.state.workspace import Workspace

FAILURE = re.compile(r"(?i)\b(error|exception|traceback|fatal|panic|killed|failed|refused)\b")
PASSING = re.compile(r"^(?:[(\[][^)\]\n]*[)\]]:? *)?(?:DEBUG|INFO|WARN(?:ING)?)\b")
"""A line that a program wrote at a level below error, whatever words are in it."""
AROUND = 3
LAST = 10
CHUNK = 65536
LARGEST = 16 << 20
"""Bytes of a log that are read, its last ones."""


class Log(NamedTuple):
    path: Path
    run: str
    attempt: int


def find(workspace: Workspace, step: str, attempt: int | None) -> Log:
    """The log of a step's last attempt (or the one asked for) in the newest run that has one."""
    name = re.compile(re.escape(step) + r"(?:\.undo)?\.(\d+)\.log")
    for run in workspace.runs_newest_first():
        found = [
            Log(run / entry.name, run.name, int(match[1]))
            for entry in os.scandir(run)
            if (match := name.fullmatch(entry.name)) and os.path.isfile(entry.path)
        ]
        if attempt is not None:
            found = [log for log in found if log.attempt == attempt]
        if found:
            return max(found, key=lambda log: log.attempt)
    raise RunbookError(
        f"step {step} has no log" + (f" of attempt {attempt}" if attempt else ""),
        code="no_log",
        exit_code=USAGE,
        cause="it was not attempted in this workspace",
        remedy=Remedy("status", text="{command} shows what was"),
    )


def lines(path: Path, tail: int | None = None) -> list[str]:
    found = _text(path).splitlines()
    if tail is None:
        return found
    return found[-tail:] if tail else []


def _text(path: Path) -> str:
    """The text of a log, its end if it is very long; "" if it cannot be read."""
    return (read_regular(path, LARGEST, tail=True) or b"").decode(errors="replace")


class Known(Protocol):
    """A failure that the steps' catalogue knows, and the lines of the log that show it."""

    line: str

    def failure(self, message: str, where: str = "") -> StepFailure: ...


def diagnose(uses: str, path: Path, facts: Mapping[str, Any]) -> Known | None:
    """The known failure of a kind of step that a log shows; None if it shows none."""
    return told(uses, path.read_text(errors="replace"), facts)[0]


def told(uses: str, text: str, facts: Mapping[str, Any]) -> tuple[Known | None, str]:
    """What the words of a failed program tell: the known failure of a kind of step on a machine
    with these facts, and the first error, "" if none is to be seen."""
    error = _hook("ROOT")(text)
    return _hook("DIAGNOSE")(uses, text, facts), str(error) if error is not None else ""


def ended(uses: str, outputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a service ended that a step's outputs tell of, as an error; None if nothing is known."""
    found: dict[str, Any] | None = _hook("ENDED")(uses, outputs)
    return found


def errors(path: Path, known: Known | None) -> list[str]:
    """The lines that show the first error, with what came before it, and those of a known failure;
    of a log in which no error can be told from the rest, all that look like one, else the last
    lines. `--` between groups."""
    text = path.read_text(errors="replace")
    found = text.splitlines()
    shows = frozenset(known.line.splitlines() if known is not None else ())
    first: range = _hook("EXCERPT")(text)
    wanted: set[int] = set(first)
    for number, line in enumerate(found):
        if line in shows or (not first and _fails(line)):
            wanted.update(range(max(0, number - AROUND), min(len(found), number + AROUND + 1)))
    if not wanted:
        wanted.update(range(max(0, len(found) - LAST), len(found)))
    out: list[str] = []
    last = -1
    for number in sorted(wanted):
        if out and number != last + 1:
            out.append("--")
        out.append(found[number])
        last = number
    return out


def _fails(line: str) -> bool:
    return FAILURE.search(line) is not None and PASSING.search(line) is None


def _hook(name: str) -> Any:
    """What the steps bring for a purpose of the engine."""
    module, _, function = getattr(importlib.import_module("runbook.steps"), name).partition(":")
    return getattr(importlib.import_module(module), function)


def follow(path: Path, workspace: Workspace) -> Iterator[str]:
    """The lines that are added to a log until the run has ended; a very long one in pieces."""
    with open(path, errors="replace") as file:
        file.seek(0, 2)
        rest = ""
        while True:
            going_on = workspace.locked()
            while chunk := file.read(CHUNK):
                *lines, rest = (rest + chunk).split("\n")
                yield from lines
                if len(rest) >= CHUNK:
                    yield rest
                    rest = ""
            if not going_on:
                if rest:
                    yield rest
                return
            time.sleep(0.2)
