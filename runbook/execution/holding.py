"""Takes the lock of a workspace for a verb that writes, once nobody else writes there.

A worker holds the lock too, so one that outlived its supervisor keeps others out. What it started
(a shell, what that put into the background) does not: it outlives a worker that was killed, and is
ended here, before anything is done beside it.
"""

from __future__ import annotations

import os
import signal
import time

from runbook.errors import FAILED, RunbookError
from runbook.execution.outcome import STOP_CODES
from runbook.process import Identity, of_attempts, session_in, stop
from runbook.state import journal
from runbook.state.history import RunRecord
from runbook.state.workspace import Workspace

GRACE = 10.0
"""Seconds that what is found is given to end by itself."""


def hold(workspace: Workspace) -> int:
    """The descriptor of the lock."""
    lock = workspace.acquire()
    try:
        clear(workspace)
    except BaseException:
        os.close(lock)
        raise
    return lock


def hold_for_run(workspace: Workspace) -> int:
    """The same. Signals that stop a run are held back from here on, until it listens to them:
    one that comes in the first moments is not lost, and not the end of us."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_CODES)
    try:
        return hold(workspace)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_CODES)
        raise


def clear(workspace: Workspace) -> bool:
    """End what a run that had no end left running; whether there was anything."""
    latest = workspace.latest()
    if latest is None or journal.end(latest) is not None:
        return False
    run = RunRecord(latest)
    if not (left_of(workspace, run) or _look_again(workspace, run)):
        return False
    if left := stop(lambda: left_of(workspace, run), GRACE) or _look_again(workspace, run):
        raise RunbookError(
            "processes of an earlier run could not be ended",
            code="not_ended",
            exit_code=FAILED,
            cause=f"processes {', '.join(map(str, left))} of run {run.id} still live",
            remedy=f"end them (`kill -9 {' '.join(map(str, left))}`), with the rights they have",
            retryable=True,
        )
    return True


def left_of(workspace: Workspace, run: RunRecord) -> list[int]:
    """The living processes that attempts in a workspace have started, by their mark, or by the
    session of a worker of its latest run."""
    found = set(of_attempts(workspace.state))
    for step in run.steps.values():
        if (worker := Identity.load(step.process)) is not None:
            found.update(session_in(worker, workspace.root))
    return sorted(found - {os.getpid()})


def _look_again(workspace: Workspace, run: RunRecord) -> list[int]:
    """One that ended while it was looked at may have begun another, which was not seen."""
    time.sleep(0.02)
    return left_of(workspace, run)
