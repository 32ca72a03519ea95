"""What becomes of an exception that no verb expected."""

from __future__ import annotations

from pathlib import Path

from runbook.errors import INTERNAL, Failure, RunbookError
from runbook.remedy import Remedy


def as_failure(problem: Exception, place: Path | str, state: Path | None) -> Failure:
    """The failure that it is: of the disk if the operating system says so (`place` is the folder
    that was worked in), else a defect, with its details in a file."""
    from runbook import disk

    if isinstance(problem, OSError) and problem.errno in disk.MEANINGS:
        return disk.disk_failure(problem, place)
    return internal(problem, state)


def internal(problem: Exception, state: Path | None) -> RunbookError:
    """What is said of a defect: where its details are, in a file."""
    from runbook.state import crash

    file = crash.write(problem, state)
    return RunbookError(
        f"internal error: {type(problem).__name__}: {problem}",
        code="internal",
        exit_code=INTERNAL,
        cause="a defect of runbook; what steps have finished is recorded",
        remedy=Remedy("run", text=f"report it with {file}; {{command}} continues"),
        log=str(file),
    )
