"""Errors as data: every failure is a message, a cause, a remedy and whether a retry can help."""

from __future__ import annotations

from typing import Any

# Exit codes, documented in `runbook --help` and pinned by tests/runbook/test_exit_codes.py.
DONE = 0
FAILED = 1
USAGE = 2
PRECONDITION = 3
WORK_FOUND = 4
APPROVAL = 5
LOCKED = 6
STILL_RUNNING = 7
CANCELLED = 8
INTERNAL = 70
SIGINT = 130
SIGTERM = 143

EXIT_CODES = {
    DONE: "done",
    FAILED: "a step failed",
    USAGE: "usage, or invalid document",
    PRECONDITION: "precondition not met, or `check` found a step that does not hold",
    WORK_FOUND: "`plan --exit-code` found work",
    APPROVAL: "waits for approval",
    LOCKED: "another run holds the lock",
    STILL_RUNNING: "`wait` timed out, still running",
    CANCELLED: "cancelled",
    INTERNAL: "internal error",
    SIGINT: "interrupted (SIGINT)",
    SIGTERM: "terminated (SIGTERM)",
}


class RunbookError(Exception):
    """A failure of a command that its user can read and act upon."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        exit_code: int,
        cause: str = "",
        remedy: str = "",
        retryable: bool = False,
        where: str = "",
        log: str = "",
        next: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.exit_code = exit_code
        self.cause = cause
        self.remedy = remedy
        self.retryable = retryable
        self.where = where
        self.log = log
        self.next = next


def error_data(error: Any) -> dict[str, Any]:
    """The `error` object of a document, from a RunbookError or a StepFailure."""
    return {
        "code": error.code,
        "message": error.message,
        "cause": error.cause,
        "remedy": error.remedy,
        "retryable": error.retryable,
        "where": error.where,
        "log": getattr(error, "log", ""),
    }
