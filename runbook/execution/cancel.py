"""Ends a run from outside."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from runbook.errors import FAILED, RunbookError
from runbook.execution import holding
from runbook.execution.attempt import GRACE
from runbook.execution.outcome import CANCEL_SIGNAL
from runbook.process import of_attempts, stop
from runbook.state.workspace import Workspace


def cancel(workspace: Workspace) -> dict[str, Any]:
    """Ask the supervisor to stop; when it is gone, end what it left. Nothing is left running."""
    if not workspace.locked():
        latest = workspace.latest()
        ended = holding.clear(workspace)
        return {"cancelled": ended, "run": latest.name if ended and latest is not None else None}
    supervisor, run = workspace.supervisor()
    if supervisor is not None and supervisor.signal(CANCEL_SIGNAL):
        supervisor.signal(signal.SIGCONT)  # if it was stopped, it hears the other only then
        if not _within(GRACE + 15, lambda: not supervisor.alive()):
            supervisor.signal(signal.SIGKILL)
    stop(lambda: of_attempts(workspace.state), GRACE)
    if not _within(5, lambda: not workspace.locked()):
        what = f"run {run}" if run else "a run that is just beginning"
        raise RunbookError(
            f"{what} could not be ended",
            code="not_cancelled",
            exit_code=FAILED,
            cause=f"a process still holds {workspace.root}",
            remedy=f"find it with `fuser -v {workspace.root}`",
            retryable=True,
        )
    return {"cancelled": True, "run": run or None}


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in this time."""
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return true
