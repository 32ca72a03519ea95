"""Errors as data: every failure is a message, a cause, a remedy and whether a retry can help."""

from __future__ import annotations

from typing import Any

from runbook.remedy import Remedies, Remedy, dump

# Exit codes; `runbook --help`, README and AGENTS.md have them (tests/test_documents.py).
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


class Failure(Exception):
    """A failure that its user can read and act upon: what, where, why, what to do, whether to
    retry. Everything that ends a command is one; `exit_code` says how."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        exit_code: int,
        cause: str = "",
        remedy: Remedies = "",
        retryable: bool = False,
        where: str = "",
        log: str = "",
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

    def error_dict(self) -> dict[str, Any]:
        """The `error` object of an answer."""
        return error_dict(
            self.code,
            self.message,
            cause=self.cause,
            remedy=self.remedy,
            retryable=self.retryable,
            where=self.where,
            log=self.log,
        )


class RunbookError(Failure):
    """A failure of a command; `next` are the commands to call then."""

    def __init__(self, message: str, *, next: tuple[Remedy | str, ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.next = next


def error_dict(
    code: str,
    message: str,
    *,
    cause: str = "",
    remedy: Remedies = "",
    retryable: bool = False,
    where: str = "",
    log: str = "",
    **more: Any,
) -> dict[str, Any]:
    """The `error` object of answers and events: the one place that knows its fields. Its remedy is
    plain data, to be rendered where the book is known."""
    return {
        "code": code,
        "message": message,
        "cause": cause,
        "remedy": dump(remedy),
        "retryable": retryable,
        "where": where,
        "log": log,
        **more,
    }
