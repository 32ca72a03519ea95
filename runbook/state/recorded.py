"""What the user said and was asked, kept in the workspace: inputs hold until they are set
otherwise, and an approval is one of the question that was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runbook.files import read_sealed, write_sealed
from runbook.protocol import Work

INPUTS = "inputs.json"
COPY = "inputs.copy.json"
"""Nothing else tells what the user said: should one record be damaged, the other has it."""
ASKED = "asked.json"
APPROVED = "approved.json"
DIGITS = 12
"""Of a question's digest: enough to tell apart what one step may ask."""


class Recorded(NamedTuple):
    """`inputs` are texts as `--set` takes them, by name; of the last run, `chosen` is the
    selection, by the arguments of `planner.select`, and `approved` what `--approve` was given."""

    inputs: dict[str, str]
    chosen: dict[str, Any]
    approved: tuple[str, ...] = ()


def read(state: Path) -> Recorded:
    """What was recorded; nothing if both records were lost."""
    for name in (INPUTS, COPY):
        found = read_sealed(state / name)
        if not isinstance(found, dict):
            continue
        inputs, chosen = found.get("inputs"), found.get("chosen")
        if not isinstance(inputs, dict) or not isinstance(chosen, dict):
            continue
        approved = found.get("approved")
        kept = tuple(map(str, approved)) if isinstance(approved, list) else ()
        return Recorded({k: v for k, v in inputs.items() if isinstance(v, str)}, chosen, kept)
    return Recorded({}, {})


def write(state: Path, recorded: Recorded) -> None:
    for name in (COPY, INPUTS):
        write_sealed(state / name, recorded._asdict())


def question_digest(question: str) -> str:
    """What an approval names a question by."""
    return hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()[:DIGITS]


def approvals(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The arguments that approve what steps ask: of each its `id` and `question`."""
    given = (f"{e['id']}={question_digest(e['question'])}" for e in entries)
    return tuple(word for one in given for word in ("--approve", one))


class Asked(NamedTuple):
    """A question, and what `apply` would have cost when it was asked."""

    digest: str
    work: Work


def asked(state: Path) -> dict[str, Asked]:
    """Of each step the question that it asked last."""
    found = read_sealed(state / ASKED)
    told = found.items() if isinstance(found, dict) else ()
    return {step: read for step, entry in told if (read := _asked(entry)) is not None}


def _asked(entry: Any) -> Asked | None:
    try:
        return Asked(str(entry["digest"]), Work(**entry["work"]))
    except (KeyError, TypeError):
        return None


def ask(state: Path, step: str, question: str, work: Work) -> None:
    """Record that a step asked."""
    kept = {name: {"digest": e.digest, "work": e.work.dump()} for name, e in asked(state).items()}
    kept[step] = {"digest": question_digest(question), "work": work.dump()}
    write_sealed(state / ASKED, kept)


def approve(state: Path, run: str, approved: Mapping[str, str]) -> None:
    """Give a run that goes on the approvals of questions, by step and digest."""
    write_sealed(state / APPROVED, {"run": run, "steps": {**approved_of(state, run), **approved}})


def approved_of(state: Path, run: str) -> dict[str, str]:
    """The approvals that a run was given while it went on; those of another are none."""
    found = read_sealed(state / APPROVED)
    if not isinstance(found, dict) or found.get("run") != run:
        return {}
    steps = found.get("steps")
    return steps if isinstance(steps, dict) else {}


def handed(state: Path, run: str) -> list[str]:
    """The same as arguments of `--approve`."""
    return [f"{step}={digest}" for step, digest in approved_of(state, run).items()]
