"""What the operating system's refusals to read, write or make room mean for the user."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.units import size

RESERVE = 256 << 20
"""Bytes of a disk that are left free for everyone else."""
FULL_WORDS = r"No space left on device|[Dd]isk quota exceeded|os error 28|os error 122"
"""A pattern of what programs print when the disk is full: strerror(3), and Rust's own words."""

AGAIN = "then {command}: what is complete is kept"

# errno: code, the message, what to do before the step is run again. `{place}` is the path that
# the error names, else the folder that was worked in.
_MEANINGS = {
    errno.ENOSPC: ("disk_full", "the disk of {place} is full", "make room there"),
    errno.EDQUOT: ("disk_full", "your disk quota at {place} is used up", "make room there"),
    errno.EFBIG: (
        "file_too_large",
        "the file system or a limit of this shell allows no file as large as {place}",
        "choose another file system, or raise `ulimit -f`",
    ),
    errno.EROFS: (
        "read_only_disk",
        "{place} is on a file system that is mounted read-only",
        "mount it for writing, or choose a folder elsewhere",
    ),
    errno.EACCES: (
        "permission_denied",
        "{place} may not be read or written by this user",
        "correct its owner and mode (`ls -ld`)",
    ),
    errno.EMFILE: (
        "too_many_open_files",
        "this process may open no more files",
        "raise the limit (`ulimit -n`)",
    ),
    errno.ENFILE: (
        "too_many_open_files",
        "this machine may open no more files",
        "end programs that hold many files",
    ),
    errno.EIO: (
        "disk_error",
        "the disk of {place} gives errors",
        "look at `dmesg`, and choose another disk",
    ),
    errno.ESTALE: (
        "disk_error",
        "the file server of {place} has lost the file",
        "mount it anew",
    ),
    errno.ENAMETOOLONG: (
        "name_too_long",
        "the file system allows no name as long as {place}",
        "choose a folder with a shorter path, or another file system",
    ),
    errno.ENOTDIR: (
        "not_a_folder",
        "{place} needs a folder where there is a file",
        "move the file away",
    ),
    errno.EISDIR: ("not_a_file", "{place} is a folder, not a file", "move it away"),
    errno.EXDEV: (
        "other_file_system",
        "{place} cannot be moved to another file system",
        "choose a folder on the same one",
    ),
}
_MEANINGS[errno.EPERM] = _MEANINGS[errno.EACCES]
_MEANINGS[errno.EEXIST] = _MEANINGS[errno.ENOTDIR]


def disk_failure(error: OSError, where: Path | str) -> StepFailure:
    """The failure that an OSError of our own file work is; `where` is the folder worked in."""
    named = error.filename if isinstance(error.filename, (str, bytes)) else None
    place = os.fsdecode(named) if named else str(where)
    code, message, advice = _MEANINGS.get(
        error.errno or 0,
        ("cannot_write", "{place} cannot be read or written", "look at the cause and mend it"),
    )
    return PreconditionNotMet(
        message.replace("{place}", place),
        code=code,
        cause=error.strerror or str(error),
        remedy=Remedy("run", text=f"{advice}, {AGAIN}"),
        where=place,
    )


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
