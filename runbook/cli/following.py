"""The commands to call next, after a run and of what `status` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runbook import errors
from runbook.cli.form import WAIT_SECONDS
from runbook.cli.options import selecting
from runbook.remedy import Remedy
from runbook.state.recorded import approvals

WAIT = ("--timeout", WAIT_SECONDS)
SETTLED = ("satisfied", "inactive")


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
        asking = [e for e in body["steps"] if e["state"] == "waiting" and state == "running"]
        approve = [Remedy("run", approvals(asking))] if asking else []
        since = ("--since", str(body["run"]["seq"]))
        end = [Remedy("cancel")] if state == "orphaned" else []
        return [Remedy("wait", (*WAIT, *since)), *approve, *end]
    if all(e["state"] in SETTLED for e in body["steps"]):
        return [Remedy("plan")]
    return _after_steps(body["steps"])


def continuing(chosen: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The selection of a run that did not end well, as far as the run that continues it needs it
    again: what was forced and has ended well is not forced again."""
    settled = {entry["id"] for entry in steps if entry["state"] in SETTLED}
    rest = {
        "start": None if chosen.get("start") in settled else chosen.get("start"),
        "until": chosen.get("until"),
        "only": [name for name in chosen.get("only", ()) if name not in settled],
        "force": [name for name in chosen.get("force", ()) if name not in settled],
    }
    return selecting(rest)


def approving(approved: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The approvals of a run that did not end well, as far as the run that continues it needs
    them again: of steps that have not ended well, and were not asked anything else."""
    done = {entry["id"] for entry in steps if entry["state"] in (*SETTLED, "waiting")}
    kept = (given for given in approved if given.partition("=")[0] not in done)
    return [word for given in kept for word in ("--approve", given)]


def _after_steps(steps: Sequence[Mapping[str, Any]]) -> list[Remedy]:
    """An approval if one is asked for; else the logs of what failed, and another run unless that
    would fail in the same way."""
    waiting = [entry for entry in steps if entry["state"] == "waiting"]
    if waiting:
        return [Remedy("run", approvals(waiting))]
    failed = [entry for entry in steps if entry["state"] == "failed"]
    # What failed without an attempt has no log.
    attempted = [entry["id"] for entry in failed if (entry["error"] or {}).get("log")]
    logs = [Remedy("logs", (name, "--errors")) for name in attempted]
    hopeless = failed and not any((entry["error"] or {}).get("retryable") for entry in failed)
    return (logs or [Remedy("plan")]) if hopeless else [*logs, Remedy("run")]
