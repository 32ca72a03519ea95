"""The verb `wait`: until the run has ended, or its caller can act, or time is up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from runbook import errors
from runbook.cli.following import WAIT, after_status
from runbook.cli.options import verb
from runbook.cli.target import Target
from runbook.cli.watching import read
from runbook.errors import error_dict
from runbook.remedy import Remedy, load
from runbook.state import matters
from runbook.state.recorded import approvals

SETTLING = 1.0
"""Seconds that a run is given to end by itself after something that its caller can act upon: where
nothing else goes on, it does, and that is the better answer."""


@click.command()
@verb("wait")
@click.option("--timeout", type=click.FloatRange(0), default=None, help="Seconds, at most.")
@click.option(
    "--since",
    type=click.IntRange(0),
    default=None,
    metavar="SEQ",
    help="Give events after SEQ, and return early for those only.",
)
@click.option("--to-end", is_flag=True, help="Return early for nothing.")
def wait(target: Target, timeout: float | None, since: int | None, to_end: bool) -> int:
    """Wait for the run that is going on; its exit code, or 7 if it takes longer.

    Returns early when you can act: a step asks for approval (5), a step failed while others go on
    (1), the model is served (7, `served` is there).
    """
    from runbook.cli import human
    from runbook.state import journal

    act = _until(target, timeout, None if to_end else since or 0)
    body = read(target)
    latest = target.workspace.latest()
    found = list(journal.read(latest, since)) if latest is not None and since is not None else []
    body["events"], body["since"] = found, since
    code, error = _ended(target, body["run"])
    follow = after_status(body)
    if code == errors.STILL_RUNNING and act:
        code, error = _early(body, act, error)
        body["errors"] = [_error(entry) for entry in _entries(body, act, "failed")]
        # What is to be done first, stands first; nothing is approved by who only waits on.
        remedy = load(error["remedy"]) if error and code == errors.APPROVAL else None
        asked = [remedy] if isinstance(remedy, Remedy) else []
        follow = [*_logs(body["errors"]), *asked, *(one for one in follow if one not in asked)]
    body["errors"] = body["errors"] or ([error] if error is not None else [])
    answer = target.answer(code == errors.DONE, body, error=error, next=follow)
    lines = [human.event(item) for item in answer["events"]]
    target.say(answer, lambda a: "\n".join([*lines, human.status(a)]))
    return code


def _until(target: Target, timeout: float | None, since: int | None) -> dict[str, str]:
    """Sleep until nobody holds the lock, or for `timeout` seconds, or until there is something to
    act upon after `since` (None: whatever happens). Returns what there is to act upon, if that was
    why."""
    from runbook.state.status import going_on

    deadline = None if timeout is None else time.monotonic() + timeout
    pause, settled = 0.02, None
    watch = None if since is None else Watch(target, since)
    while going_on(target.workspace):
        moment = time.monotonic()
        act = watch.look() if watch is not None else {}
        if not act:
            settled = None
        elif settled is None:
            settled = moment + SETTLING
        ends = [end for end in (deadline, settled) if end is not None]
        if ends and moment >= min(ends):
            return act
        time.sleep(max(0.0, min([pause, *(end - moment for end in ends)])))
        pause = min(0.25, pause * 1.5)
    return {}


class Watch:
    """Looks into the journal of the latest run for what its caller can act upon, when that has
    grown."""

    def __init__(self, target: Target, since: int) -> None:
        self._latest = target.workspace.latest
        self._run = self._latest()
        self._since = since
        self._size = -1
        self._found: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        from runbook.state import journal

        run = self._latest()
        if run != self._run:  # another one has begun
            self._run, self._since, self._size = run, 0, -1
        size = _size(run / journal.FILE) if run is not None else 0
        if run is not None and size != self._size:
            self._size = size
            self._found = matters.of_run(run, self._since)
        return self._found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _early(
    body: Mapping[str, Any], act: Mapping[str, str], error: dict[str, Any] | None
) -> tuple[int, dict[str, Any] | None]:
    """Exit code and error of a run that goes on while there is something to act upon."""
    if failed := _entries(body, act, "failed"):
        return errors.FAILED, _error(failed[0])
    if asking := _entries(body, act, "waiting"):
        first = asking[0]
        return errors.APPROVAL, error_dict(
            "approval",
            f"step {first['id']} waits for approval: {first['question']}",
            cause="the run goes on with what does not need it",
            remedy=Remedy("run", approvals(asking)),
            retryable=True,
            step=first["id"],
        )
    return errors.STILL_RUNNING, error


def _entries(body: Mapping[str, Any], act: Mapping[str, str], state: str) -> list[dict[str, Any]]:
    """The steps of `status` that are to be acted upon and are in a state."""
    return [e for e in body["steps"] if act.get(e["id"]) == state and e["state"] == state]


def _error(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry["error"], "step": entry["id"]}


def _logs(failures: list[dict[str, Any]]) -> list[Remedy]:
    return [Remedy("logs", (e["step"], "--errors")) for e in failures if e["log"]]


def _ended(target: Target, run: Mapping[str, Any] | None) -> tuple[int, dict[str, Any] | None]:
    """How the latest run ended: exit code and error."""
    from runbook.state.status import latest_run

    if run is None:
        begin = Remedy("run", text="begin one: {command}")
        return errors.PRECONDITION, error_dict(
            "never_ran", "there is no run to wait for: this workspace never had one", remedy=begin
        )
    if run["state"] in ("running", "orphaned"):
        again = Remedy("wait", (*WAIT, "--since", str(run["seq"])))
        return errors.STILL_RUNNING, error_dict(
            "still_running", "still running", remedy=again, retryable=True
        )
    if run["state"] == "interrupted":
        return errors.FAILED, error_dict(
            "interrupted",
            "the run was interrupted before its end",
            cause="its supervisor died",
            remedy=Remedy("run"),
            retryable=True,
        )
    record = latest_run(target.workspace)
    return run["exit_code"], record.result if record is not None else None
