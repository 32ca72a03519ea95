"""The commands to call next, after a run and of what `status` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runbook import errors
from runbook.cli.options import selecting
from runbook.remedy import Remedy

WAIT = ("--timeout", "60")


def after_run(code: int, answer: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[Remedy]:
    """Of a run of the `chosen` steps that ended with exit code `code`."""
    if code == errors.DONE:
        return [Remedy("status")]
    if answer["lacking"]:
        again = Remedy("run", tuple(selecting(chosen)))
        return [Remedy("run", ("--until", answer["lacking"])), again]
    return _after_steps(answer["body"]["steps"])


def after_status(body: Mapping[str, Any]) -> list[Remedy]:
    """Of what `status` says."""
    state = body["run"]["state"] if body["run"] is not None else "none"
    if state in ("running", "orphaned"):
        return [Remedy("wait", WAIT), Remedy("cancel")]
    if all(e["state"] in ("satisfied", "inactive") for e in body["steps"]):
        return [Remedy("plan")]
    return _after_steps(body["steps"])


def _after_steps(steps: Sequence[Mapping[str, Any]]) -> list[Remedy]:
    """An approval if one is asked for; else the logs of what failed, and another run unless that
    would fail in the same way."""
    waiting = [entry["id"] for entry in steps if entry["state"] == "waiting"]
    if waiting:
        return [Remedy("run", tuple(w for name in waiting for w in ("--approve", name)))]
    failed = [entry for entry in steps if entry["state"] == "failed"]
    logs = [Remedy("logs", (entry["id"], "--errors")) for entry in failed]
    hopeless = failed and not any((entry["error"] or {}).get("retryable") for entry in failed)
    return logs if hopeless else [*logs, Remedy("run")]
