"""Scores of an evaluation: read from lm-eval's samples, with their uncertainty."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.protocol import StepFailure

Z = 1.959964
"""Of the normal distribution, for 95 % on both sides."""


@dataclass(frozen=True, slots=True)
class Score:
    """The mean of n samples, with the interval that holds 95 %; `empty` answers had no text."""

    score: float
    n: int
    interval: tuple[float, float]
    empty: int


def read(folder: Path, metric: str | None) -> Score:
    """The score of all samples below a folder. `metric` is `name,filter`; None takes the first
    metric and filter of the samples. Raises StepFailure if there are none."""
    samples = [
        json.loads(line)
        for path in sorted(folder.rglob("samples_*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    if not samples:
        raise _none(folder, "it wrote no samples")
    name, _, kept = (metric or "").partition(",")
    name = name or samples[0]["metrics"][0]
    kept = kept or samples[0]["filter"]
    taken = [one for one in samples if one["filter"] == kept and name in one]
    if not taken:
        filters = sorted({one["filter"] for one in samples})
        raise _none(folder, f"no sample has {name} under {kept}; filters: {', '.join(filters)}")
    values = [float(one[name]) for one in taken]
    empty = sum(not _text(one["resps"]).strip() for one in taken)
    return Score(round(statistics.fmean(values), 4), len(values), interval(values), empty)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the mean of all samples there might be lies, with 95 %: Wilson's score interval if each
    is 0 or 1 (https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval), else by the
    normal distribution."""
    n, mean = len(values), statistics.fmean(values)
    if set(values) <= {0.0, 1.0}:
        middle = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    else:
        middle = mean
        half = Z * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    low, high = max(0.0, middle - half), middle + half
    return round(low, 4), round(min(1.0, high) if max(values) <= 1 else high, 4)


def _text(answers: Any) -> str:
    while isinstance(answers, list):
        answers = answers[0] if answers else ""
    return answers or ""


def _none(folder: Path, cause: str) -> StepFailure:
    return StepFailure(
        "lm-eval gave no score",
        code="no_score",
        cause=cause,
        remedy="read its log, lm-eval.log, there",
        where=str(folder),
    )
