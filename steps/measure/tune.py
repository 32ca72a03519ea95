"""`runbook tune`: which of the server's free choices serve a goal best, by measuring them.

From what the book says, one choice after the other takes each value that it offers while the others
stay at the best so far (coordinate descent); a value that does not serve is told and left. So of
choices with n1, n2, ... values 1 + n1 + n2 + ... servers are started at most, and what two choices
do only together is not found. Each server is started by `runbook run`, with its rules, its proof of
the start and its way back.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from runbook.errors import LOCKED, USAGE
from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.flags.command import effective_of
from runbook.steps.common.serving import step_of
from runbook.steps.measure import choices, table
from runbook.steps.measure.bench import asked_for
from runbook.steps.measure.measuring import Load, measure, surroundings
from runbook.steps.measure.served import Book, of_step
from runbook.steps.measure.tuning import FOLDER, GOALS, Candidate, Record, better, score

INPUT = "profile_file"
"""The input by which a book takes a profile in a file of its own."""
PLACE_WAIT = 60


class Tried(TypedDict):
    """Values that were tried, and what came of it."""

    values: dict[str, Any]
    score: float | None
    seconds: float
    point: dict[str, Any] | None
    error: str


class Tune(TypedDict):
    """The answer of `tune`. `profile_file` is the best of what was measured, `record` the file of
    it all; `complete` says whether everything was tried within the budget."""

    goal: str
    concurrency: int
    choices: dict[str, list[Any]]
    best: Tried
    tried: list[Tried]
    complete: bool
    profile_file: str
    record: str


def tune(
    *,
    book: Book,
    tell: Callable[[str], None],
    cache: Path,
    goal: str,
    concurrency: int,
    prompts: str,
    input_length: int | None,
    output_length: int,
    repetitions: int,
    requests: int,
    budget: float,
) -> dict[str, Any]:
    """What `VERBS` says it takes; `budget` in minutes."""
    if goal not in GOALS:
        raise StepFailure(
            f"{goal!r} is no goal",
            code="usage",
            exit_code=USAGE,
            remedy=f"name one of {', '.join(GOALS)}",
        )
    asked = asked_for(prompts, None, input_length, output_length, True, False)
    load = Load(asked, concurrency, requests * concurrency, repetitions, concurrency)
    search = Search(book, tell, goal, load)
    complete = search.run(budget * 60)
    best = search.best
    if best is None:
        raise _nothing_serves(search)
    file = search.write(best)
    search.serve(file, whole=True)
    body = {
        "goal": goal,
        "concurrency": concurrency,
        "choices": search.offered,
        "best": best.dump(),
        "tried": [one.dump() for one in search.record.candidates],
        "complete": complete,
        "profile_file": str(file),
        "record": str(search.record.path),
    }
    return {"body": body, "text": _text(search, best, file, complete), "next": [Remedy("status")]}


class Search:
    """One search for the best of a book's choices."""

    def __init__(self, book: Book, tell: Callable[[str], None], goal: str, load: Load) -> None:
        self.book, self.tell, self.goal, self.load = book, tell, goal, load
        self.step = step_of(book["name"], book["steps"])
        if INPUT not in book["inputs"]:
            raise _no_choices(f"it has no input `{INPUT}` to give its server a profile by")
        given = {k: v for k, v in self.step["with"].items() if k != "profile_file"}
        self.flags = effective_of(given)
        self.offered = choices.choices(given, self.flags.profile)
        if not self.offered:
            raise _no_choices("its serve step offers no `choices`")
        self.folder = Path(book["workspace"]) / FOLDER
        start = {name: choices.present(self.flags, name) for name in self.offered}
        self.start = start
        question = {
            "goal": goal,
            "load": load.about(),
            "repetitions": load.repetitions,
            "start": start,
            "choices": self.offered,
            "profile": self.flags.profile,
            "digests": given.get("digests") or {},
        }
        self.record = Record(self.folder, question)
        self.best: Candidate | None = None

    def run(self, budget: float) -> bool:
        """Try until all is tried, or the budget of seconds is used up: then False."""
        values = self.start
        if not self._try(values, budget):
            return False
        for name in self.offered:
            if self.best is not None:
                values = self.best.values
            for other in choices.neighbours(values, self.offered, name):
                if not self._try(other, budget):
                    return False
        return True

    def _try(self, values: choices.Values, budget: float) -> bool:
        """Measure a candidate, unless it was before; False if there is no time for it."""
        found = self.record.known(values)
        if found is None:
            if self.record.candidates and self.record.seconds >= budget:
                return False
            found = self._measure(values)
            self.record.add(found)
        else:
            self.tell(f"{_words(values)}: measured before")
        if better(found, self.best, self.goal):
            self.best = found
        return True

    def _measure(self, values: choices.Values) -> Candidate:
        began = time.monotonic()
        self.tell(f"{_words(values)}: start")
        file = self.folder / f"{self.record.name}.candidate.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(choices.profile(self.flags, values)))
        try:
            point = self._point(self.serve(file))
        except StepFailure as failure:
            told = f"{failure.message}: {failure.cause}"
            self.tell(f"{_words(values)}: {told.splitlines()[0]}")
            return Candidate(values, None, time.monotonic() - began, error=told[:2000])
        found = score(point, self.goal)
        self.tell(f"{_words(values)}: {GOALS[self.goal][0]} {found:g}")
        return Candidate(values, found, time.monotonic() - began, point)

    def _point(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The point of the load against the server that was just started."""
        served = of_step(self.book, {**self.step, "outputs": outputs})
        point: dict[str, Any] = {}
        for entry in measure(served, self.load, self.tell):
            point = entry
        if point["failed"]:
            error = next(e for one in point["repetitions"] for e in one["errors"])
            raise StepFailure(
                f"{point['failed']} requests failed", code="requests_failed", cause=error
            )
        return point | {"about": served.about | surroundings(served)}

    def serve(self, file: Path, whole: bool = False) -> dict[str, Any]:
        """Let `runbook run` serve with a profile file, and go on to the end of the book if `whole`;
        the outputs of the step that serves. Raises StepFailure."""
        until = () if whole else ("--until", self.step["id"])
        command = self.book["command"]("run", "--set", f"{INPUT}={file}", *until)
        while True:
            answer, code = _runbook(command)
            if code != LOCKED:
                break
            _runbook(self.book["command"]("wait", "--timeout", str(PLACE_WAIT)))
        if code != 0:
            error = answer.get("error") or {}
            raise StepFailure(
                error.get("message") or f"the run ended with exit code {code}",
                code=error.get("code") or "run_failed",
                cause=error.get("cause", ""),
                remedy=error.get("remedy") or Remedy("status"),
                where=error.get("where", ""),
            )
        found: dict[str, Any] = answer["outputs"][self.step["id"]]
        return found

    def write(self, best: Candidate) -> Path:
        """The profile file of the best candidate, with the evidence for it."""
        import yaml

        point = best.point or {}
        about = point["about"]
        cards = [gpu["name"] for gpu in about["gpus"]]
        where = f"{len(cards)} x {cards[0]}" if cards else "no GPU"
        figure: dict[str, Any] = {
            "value": point["output_tokens_per_second"],
            "unit": "tokens/s",
            "streams": self.load.streams,
            "kind": "measured",
            "source": f"runbook tune, {self.record.path.name}, {about['time']}",
            "cards": where,
        }
        if limits := [gpu["power_limit"] for gpu in about["gpus"] if gpu["power_limit"]]:
            figure["power_watts"] = round(min(limits))
        made = choices.profile(self.flags, best.values) | {
            "figures": [figure],
            "evidence": {
                "goal": self.goal,
                "load": self.load.about(),
                "about": {k: about[k] for k in ("time", "vllm", "driver", "gpus", "digests")},
                "tried": [
                    {k: v for k, v in one.dump().items() if k != "point"}
                    for one in self.record.candidates
                ],
            },
        }
        path = self.folder / f"{self.goal}-{self.load.streams}-{self.record.name}.yaml"
        path.write_text(yaml.safe_dump(made, sort_keys=False, allow_unicode=True))
        return path


def _runbook(command: str) -> tuple[dict[str, Any], int]:
    """What the program answers to a command line, and its exit code."""
    words = [sys.executable, "-m", *shlex.split(command), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return answer, done.returncode


def _words(values: choices.Values) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _text(search: Search, best: Candidate, file: Path, complete: bool) -> str:
    rows = [["seconds", GOALS[search.goal][0], "values"]]
    for one in search.record.candidates:
        shown = "-" if one.score is None else f"{one.score:g}"
        mark = " (best)" if one is best else ""
        why = f": {one.error.splitlines()[0]}" if one.error else ""
        rows.append([f"{one.seconds:.0f}", shown, f"{_words(one.values)}{mark}{why}"])
    left = "" if complete else "\nthe budget is used up; the same command with more goes on"
    return f"{table.columns(rows, left=1)}\n{file}{left}"


def _nothing_serves(search: Search) -> PreconditionNotMet:
    tried = [one.dump() for one in search.record.candidates]
    return PreconditionNotMet(
        "none of what was tried could be measured",
        code="nothing_serves",
        cause=tried[0]["error"] if tried else "the budget was used up before anything was tried",
        remedy=Remedy("run", text="see that {command} serves, then tune"),
        where=str(search.record.path),
    )


def _no_choices(cause: str) -> PreconditionNotMet:
    return PreconditionNotMet(
        "the book has nothing to tune",
        code="nothing_to_tune",
        cause=cause,
        remedy='give its serve step `choices` and `profile_file: "{{ inputs.profile_file }}"`',
    )
