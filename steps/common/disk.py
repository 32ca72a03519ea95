"""What the operating system's refusals to read, write or make room mean for the user."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from runbook.disk import AGAIN
from runbook.disk import disk_failure as disk_failure
from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.units import size

RESERVE = 256 << 20
"""Bytes of a disk that are left free for everyone else."""
FULL_WORDS = r"No space left on device|[Dd]isk quota exceeded|os error 28|os error 122"
"""A pattern of what programs print when the disk is full: strerror(3), and Rust's own words."""


def disk_full(where: Path | str, cause: str) -> StepFailure:
    """The failure of a program that said, in `cause`, that the disk of `where` is full."""
    failure = disk_failure(OSError(errno.ENOSPC, ""), where)
    failure.cause = cause
    return failure


def shortage(where: Path, needed: int, reserve: int = RESERVE) -> StepFailure | None:
    """Why `needed` more bytes do not fit into a folder (which need not exist yet), leaving
    `reserve`; None if they do. Nothing always fits."""
    existing = next(path for path in (where, *where.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed == 0 or needed + reserve <= free:
        return None
    return PreconditionNotMet(
        f"{size(needed)} are needed and {size(free)} are free on the disk of {where}",
        code="not_enough_disk",
        remedy=Remedy("run", text=f"free {size(needed + reserve - free)} there, {AGAIN}"),
        where=str(where),
    )
