"""What was measured on the way to the best flags: kept as it is known, so that a search that was
killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.steps.measure.choices import Values

FOLDER = "tune"

GOALS: dict[str, tuple[str, str, bool]] = {
    "tokens-per-second": ("output_tokens_per_second", "", True),
    "ttft": ("ttft_seconds", "median", False),
    "tpot": ("tpot_seconds", "median", False),
}
"""By name: the figure, which number of it, whether more is better."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Values that were tried; `score` by the goal, None if they did not serve: then `error` says
    why. `seconds` is what it took, start included."""

    values: Values
    score: float | None
    seconds: float
    point: dict[str, Any] | None = None
    error: str = ""

    def dump(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "score": self.score,
            "seconds": round(self.seconds, 1),
            "point": self.point,
            "error": self.error,
        }


class Record:
    """The candidates of one question: goal, load, choices, and what the server is made of."""

    def __init__(self, folder: Path, question: Mapping[str, Any]) -> None:
        text = json.dumps(question, sort_keys=True)
        self.name = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = folder / f"{self.name}.jsonl"
        self.question = question
        self.candidates: list[Candidate] = []
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed
            if entry.get("kind") == "candidate":
                told = {k: v for k, v in entry.items() if k != "kind"}
                self.candidates.append(Candidate(**told))

    def known(self, values: Values) -> Candidate | None:
        return next((one for one in self.candidates if one.values == values), None)

    @property
    def seconds(self) -> float:
        """What all of them took, in however many calls."""
        return sum(one.seconds for one in self.candidates)

    def add(self, candidate: Candidate) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            entries: list[dict[str, Any]] = [{"kind": "candidate", **candidate.dump()}]
            if file.tell() == 0:
                entries.insert(0, {"kind": "question", **self.question})
            else:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # whoever wrote the last line was killed in it
            file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
        self.candidates.append(candidate)


def better(one: Candidate, other: Candidate | None, goal: str) -> bool:
    """Whether a candidate is measured better; the other stays where they are equal."""
    if one.score is None:
        return False
    if other is None or other.score is None:
        return True
    return one.score > other.score if GOALS[goal][2] else one.score < other.score


def score(point: Mapping[str, Any], goal: str) -> float | None:
    """The figure of the goal; None where the point has none."""
    name, key, _ = GOALS[goal]
    value = point[name]
    if key and value is not None:
        value = value[key]
    return None if value is None else float(value)
