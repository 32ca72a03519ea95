"""Files that are whole or not there, whatever happens; and reading of what may be neither."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from runbook.errors import PRECONDITION, RunbookError

LARGEST_RECORD = 64 << 20
"""Bytes. No record of ours is larger, those of 5,000 steps in one file included."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or its predecessor, also after a power cut.
    A folder that stands in its place is set aside."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(temporary, path)
        except IsADirectoryError:
            set_aside(path)
            os.replace(temporary, path)
    except BaseException as error:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the same disk; the first error is the one that tells
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that finds the disk full names no file
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, encode(value, indent=1) + b"\n")


def encode(value: Any, *, indent: int | None = None) -> bytes:
    """JSON in UTF-8. Half characters (lone surrogates, as in names of files that are not UTF-8)
    are escaped."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, separators=separators).encode()


def read_regular(
    path: Path | str, largest: int = LARGEST_RECORD, *, tail: bool = False
) -> bytes | None:
    """The content of a file; None if it cannot be read or is something else: a folder, a FIFO
    (which is not waited for), a device. Of more than `largest` bytes the last ones with `tail`,
    else None."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or (about.st_size > largest and not tail):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(max(0, about.st_size - largest))
            return file.read(largest)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; None if it cannot be read or is none (a record can be lost)."""
    return parse(read_regular(path))


def parse(data: bytes | None) -> Any:
    """The value of JSON; None if it is none."""
    if data is None:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def write_sealed(path: Path, value: Any) -> None:
    """Write JSON for `read_sealed`: its digest on the first line, itself on the second."""
    data = encode(value)
    write_atomic(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def read_sealed(path: Path | str) -> Any:
    """What `write_sealed` wrote; None if one bit of it differs. For what is large: a digest of
    the text is quicker than a look at each value."""
    seal, _, data = (read_regular(path) or b"").partition(b"\n")
    return parse(data) if seal == hashlib.sha256(data).hexdigest().encode() else None


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> None:
    """Rename what stands where a record belongs and is none, so that nothing is lost."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged.{number}")):
        number += 1
    os.rename(path, aside)


def make_folder(path: Path) -> None:
    """Make a folder and those above it. What is none and stands in its place is set aside."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        set_aside(path)
        path.mkdir()


def home() -> Path:
    """The user's home folder, for what has no folder of its own."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise RunbookError(
            "this user has no home folder",
            code="no_home",
            exit_code=PRECONDITION,
            cause="HOME is not set, and the system knows no folder of this user",
            remedy="set HOME, or RUNBOOK_WORKSPACE and RUNBOOK_CACHE",
        ) from error


def lies_inside(folder: Path | str, path: str) -> bool:
    """Whether a path, itself not followed if it is a link, is below a folder."""
    real = os.path.realpath(folder)
    return os.path.commonpath((real, os.path.realpath(os.path.dirname(path)))) == real


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
