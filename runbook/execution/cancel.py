"""Ends a run from outside."""

from __future__ import annotations

import time
from typing import Any

from runbook.errors import FAILED, RunbookError
from runbook.execution.attempt import GRACE, MARK
from runbook.execution.outcome import CANCEL_SIGNAL
from runbook.process import marked, stop
from runbook.state.workspace import Workspace


def cancel(workspace: Workspace) -> dict[str, Any]:
    """Ask the supervisor to stop; when it is gone, end what it left. Nothing is left running."""
    if not workspace.locked():
        return {"cancelled": False, "run": None}
    supervisor, run = workspace.supervisor()
    if supervisor is not None and supervisor.signal(CANCEL_SIGNAL):
        deadline = time.monotonic() + GRACE + 15
        while supervisor.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
    if run:
        stop(lambda: marked(MARK, f"{run}/"), GRACE)
    deadline = time.monotonic() + 5
    while workspace.locked() and time.monotonic() < deadline:
        time.sleep(0.02)
    if workspace.locked():
        raise RunbookError(
            f"run {run} could not be ended",
            code="not_cancelled",
            exit_code=FAILED,
            cause=f"a process still holds {workspace.lock_file}",
            remedy="find it with `fuser` or `lsof` on that file",
            retryable=True,
        )
    return {"cancelled": True, "run": run}
