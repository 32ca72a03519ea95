"""What the operating system's refusals to read, write or make room mean for the user."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.remedy import Remedy

AGAIN = "then {command}: what is complete is kept"

# errno: code, the message, what to do before the step is run again. `{place}` is the path that
# the error names, else the folder that was worked in.
MEANINGS = {
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
    errno.ENOMEM: (
        "out_of_memory",
        "this machine has no memory left",
        "end programs that take much of it",
    ),
    errno.EXDEV: (
        "other_file_system",
        "{place} cannot be moved to another file system",
        "choose a folder on the same one",
    ),
}
MEANINGS[errno.EPERM] = MEANINGS[errno.EACCES]
MEANINGS[errno.EEXIST] = MEANINGS[errno.ENOTDIR]


def disk_failure(error: OSError, where: Path | str) -> StepFailure:
    """The failure that an OSError of our own file work is; `where` is the folder worked in."""
    named = error.filename if isinstance(error.filename, (str, bytes)) else None
    place = os.fsdecode(named) if named else str(where)
    code, message, advice = MEANINGS.get(
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
