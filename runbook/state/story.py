"""What happened in a workspace, run by run: attempts with their times, progress and ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from runbook.state import journal

MOST_RUNS = 20
"""Runs that a story holds at most, the newest."""


def runs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The runs in these folders, newest first, each with its attempts."""
    return [run(folder) for folder, _ in zip(folders, range(MOST_RUNS), strict=False)]


def run(folder: Path) -> dict[str, Any]:
    """One run: when, how it ended, what it skipped, and its attempts in the order of their start.

    Times are seconds since the run began; an attempt that has no end lasts as long as the journal.
    """
    told: dict[str, Any] = {"id": folder.name, "exit_code": None, "attempts": [], "skipped": []}
    attempts: dict[tuple[str, int], dict[str, Any]] = {}
    began: float | None = None
    for event in journal.read(folder):
        moment = _seconds(event["time"])
        began = moment if began is None else began
        kind = event["type"]
        if kind == "run.started":
            told.update(started=event["time"], package=event.get("package", ""))
        elif kind == "run.finished":
            told["exit_code"] = event["exit_code"]
        elif kind == "step.satisfied":
            told["skipped"].append(event["step"])
        elif kind == "attempt.started":
            attempts[event["step"], event["attempt"]] = {
                "step": event["step"],
                "attempt": event["attempt"],
                "start": moment - began,
                "end": None,
                "outcome": "running",
                "error": None,
                "rates": {},
            }
        elif (entry := attempts.get((event.get("step", ""), event.get("attempt", 0)))) is None:
            continue
        elif kind == "attempt.progress":
            _rate(entry, event, moment - began)
        elif kind in ("attempt.succeeded", "attempt.failed"):
            entry["end"] = moment - began
            entry["outcome"] = kind.removeprefix("attempt.")
            entry["error"] = event.get("error")
        told["seconds"] = max(told.get("seconds", 0.0), moment - began)
    told["attempts"] = list(attempts.values())
    return told


def _rate(entry: dict[str, Any], event: Mapping[str, Any], moment: float) -> None:
    """Keep, by unit, from when to when an attempt progressed, and how far."""
    if not event["unit"]:
        return
    first = {"since": moment, "from": event["done"]}
    rate = entry["rates"].setdefault(event["unit"], first)
    rate.update(until=moment, done=event["done"], total=event["total"])


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
