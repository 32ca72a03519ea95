"""`runbook bench`: how fast the served model of a book answers, at each of several concurrencies.

A point is one concurrency: a warm-up, then repetitions, each of `requests` times the concurrency
requests of which so many are under way at once. What is measured is written as it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

from runbook.errors import USAGE, error_dict
from runbook.protocol import StepFailure
from runbook.steps.measure import against as comparing
from runbook.steps.measure import results, table
from runbook.steps.measure.measuring import Load, measure, surroundings
from runbook.steps.measure.prompts import CLASSES, Asked
from runbook.steps.measure.served import Book, of_book

WARM_UP = 1
"""Requests of each stream before the first repetition counts."""


class Spread(TypedDict):
    """Mean, median and 99th percentile, in seconds."""

    mean: float
    median: float
    p99: float


class Point(TypedDict):
    """One concurrency: `asked` says what, the others are means over the repetitions (figures.py);
    `deviation` is the standard deviation of the rate over them."""

    kind: str
    asked: dict[str, Any]
    output_tokens_per_second: float
    deviation: float | None
    ttft_seconds: Spread | None
    tpot_seconds: Spread | None
    itl_seconds: Spread | None
    latency_seconds: Spread | None
    acceptance: float | None
    tokens_per_pass: float | None
    watts: float | None
    failed: int
    repetitions: list[dict[str, Any]]


class Comparison(TypedDict):
    """One figure of a point, before and now: see against.py."""

    concurrency: int
    figure: str
    before: float
    now: float
    change: float
    probability: float | None
    outcome: str


class Bench(TypedDict):
    """The answer of `bench`. `result` is the file of JSON lines that holds it all; `differs`, with
    --against, what was another around the two results."""

    result: str
    about: dict[str, Any]
    points: list[Point]
    against: NotRequired[str]
    differs: NotRequired[list[str]]
    compared: NotRequired[list[Comparison]]


def bench(
    *,
    book: Book,
    tell: Callable[[str], None],
    cache: Path,
    prompts: str,
    prompts_file: str | None,
    input_length: int | None,
    output_length: int,
    concurrency: str,
    repetitions: int,
    requests: int,
    ignore_eos: bool,
    thinking: bool,
    against: str | None,
    tolerance: float,
) -> dict[str, Any]:
    """What `VERBS` says it takes."""
    streams = _numbers(concurrency)
    asked = asked_for(prompts, prompts_file, input_length, output_length, ignore_eos, thinking)
    folder = Path(book["workspace"]) / results.FOLDER
    before = results.load(results.named(folder, against)) if against is not None else None
    served = of_book(book)
    about = served.about | surroundings(served) | {"prompts": prompts}
    points = []
    with results.Writer(folder, prompts) as writer:
        writer.add(about)
        for count in streams:
            load = Load(asked, count, requests * count, repetitions, WARM_UP * count)
            point: dict[str, Any] = {}
            for entry in measure(served, load, tell):
                writer.add(entry)
                point = entry
            points.append(point)
    body: dict[str, Any] = {"result": str(writer.path), "about": about, "points": points}
    text = table.of_points(points) + f"\n{writer.path}"
    error = _failed(points, writer.path)
    if before is not None:
        compared = comparing.compare(before.points, points, tolerance / 100)
        body |= {
            "against": str(before.path),
            "differs": comparing.differences(before.about, about),
            "compared": [one.dump() for one in compared],
        }
        text += "\n" + table.of_comparison(compared, body["differs"], before.path)
        error = error or _regressed(compared, before, tolerance)
    return {"body": body, "text": text, "error": error}


def asked_for(
    prompts: str,
    file: str | None,
    input_length: int | None,
    output_length: int,
    ignore_eos: bool,
    thinking: bool,
) -> Asked:
    """What options ask for. Raises StepFailure for what is none."""
    if prompts not in CLASSES:
        raise _usage(f"{prompts!r} is no class of prompts", f"name one of {', '.join(CLASSES)}")
    if (prompts == "file") != (file is not None):
        raise _usage("--prompts file and --prompts-file go together", "give both, or none")
    if prompts == "file" and input_length is not None:
        raise _usage("the prompts of a file have their own length", "leave out --input-length")
    if output_length < 2 or (input_length or 1) < 1:
        raise _usage("a length is too small", "give at least 1 token of input and 2 of output")
    if prompts == "random":
        input_length = input_length or 256
    path = Path(file).absolute() if file is not None else None
    return Asked(prompts, path, input_length, output_length, ignore_eos, thinking)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise _usage(f"{text!r} is no concurrency", "give numbers from 1 up, as 1,2,4,8")
    return found


def _usage(message: str, remedy: str) -> StepFailure:
    return StepFailure(message, code="usage", exit_code=USAGE, remedy=remedy)


def _failed(points: list[dict[str, Any]], path: Path) -> dict[str, Any] | None:
    failed = sum(point["failed"] for point in points)
    if not failed:
        return None
    first = next(e for p in points for one in p["repetitions"] for e in one["errors"])
    from runbook.remedy import Remedy

    return error_dict(
        "requests_failed",
        f"{failed} requests failed: the figures are of the others",
        cause=first,
        remedy=Remedy("logs", ("{step}", "--errors"), "serve"),
        where=str(path),
    )


def _regressed(
    compared: list[comparing.Compared], before: results.Result, tolerance: float
) -> dict[str, Any] | None:
    if not compared:
        return error_dict(
            "not_comparable",
            "the two results have no point in common",
            cause="class, lengths, concurrency and number of requests must be the same",
            remedy="repeat the benchmark with the settings of the other result",
            where=str(before.path),
        )
    worse = [one for one in compared if one.outcome == "worse"]
    if not worse:
        return None
    told = (f"{one.figure} at {one.concurrency}: {one.change:+.1%}" for one in worse)
    return error_dict(
        "regression",
        f"{len(worse)} figures are worse than before, beyond noise",
        cause="; ".join(told),
        remedy=f"look at what differs around it; --tolerance allows more than {tolerance:g} %",
        where=str(before.path),
    )
