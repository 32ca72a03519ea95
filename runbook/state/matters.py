"""What of a run that goes on its caller can act upon."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runbook.state import journal


def of_run(run: Path, since: int = 0) -> dict[str, str]:
    """Steps by id, by the events after `since`: `waiting` for approval, `failed` for good, `served`
    if something is asked at an endpoint now. What was settled after it is none."""
    found: dict[str, str] = {}
    for event in journal.read(run, since, thin=True):
        step = event.get("step")
        if step is None:
            continue
        kind = event["type"]
        if kind == "step.waiting" and event["state"] == "waiting":
            found[step] = "waiting"
        elif kind == "attempt.failed" and _for_good(event):
            found[step] = "failed"
        elif kind == "attempt.succeeded" and _has_endpoint(event):
            found[step] = "served"
        elif kind in ("step.approved", "step.decided", "attempt.started"):
            found.pop(step, None)
    return found


def _for_good(event: Mapping[str, Any]) -> bool:
    return event.get("retry_in") is None and event["error"].get("code") != "cancelled"


def _has_endpoint(event: Mapping[str, Any]) -> bool:
    outputs = event.get("outputs")
    return isinstance(outputs, Mapping) and bool(outputs.get("endpoint"))
