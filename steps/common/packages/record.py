"""RECORD of a wheel: its files with their hashes and sizes.

https://packaging.python.org/en/latest/specifications/recording-installed-packages/
What it says is the wheel's word only: `outside` tells of paths that lead out of its tree, which
nobody may follow.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

ALGORITHMS = ("sha256", "sha384", "sha512")
"""What the specification lets stand in a RECORD."""


class RecordError(ValueError):
    """The bytes are not a RECORD."""


@dataclass(frozen=True, slots=True)
class Row:
    """Hash (`sha256=...`) and size in bytes of a file; "" and None where they are not told."""

    digest: str = ""
    size: int | None = None


def parse_record(data: bytes) -> dict[str, Row]:
    """The rows of a RECORD by path, as they stand there. Raises `RecordError`."""
    try:
        rows = {}
        for cells in csv.reader(io.StringIO(data.decode(), newline=""), strict=True):
            path, digest, size = cells
            if digest and digest.partition("=")[0] not in ALGORITHMS:
                raise RecordError(f"RECORD has a hash of unknown kind for {path!r}")
            if size and not (size.isascii() and size.isdecimal()):
                raise RecordError(f"RECORD has the size {size[:20]!r} for {path!r}")
            rows[path] = Row(digest, int(size) if size else None)
        return rows
    except RecordError:
        raise
    except (ValueError, csv.Error) as error:
        raise RecordError(f"RECORD has a row that is not path, hash, size: {error}") from error


def outside(path: str) -> bool:
    """Whether a path of a RECORD leads out of the folder that the wheel is installed into, or is
    not the plain path of a file in it."""
    parts = path.split("/")
    return (
        not path.isprintable()
        or "\\" in path
        or any(part in ("", ".", "..") for part in parts)
        or PurePosixPath(path).is_absolute()
    )


def record_hash(digest: bytes, algorithm: str = "sha256") -> str:
    """A digest as RECORD spells it."""
    return f"{algorithm}={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def file_hash(file: IO[bytes], algorithm: str = "sha256") -> str:
    """The hash of an open file as RECORD spells it."""
    return record_hash(hashlib.file_digest(file, algorithm).digest(), algorithm)  # type: ignore[arg-type]


def faults(
    record: Mapping[str, Row], open_member: Callable[[str], IO[bytes] | None]
) -> Iterator[str]:
    """What in RECORD is not so: a missing file (`open_member` gives None or raises OSError), or
    one with another hash. Reads every file that has a hash."""
    for path, row in record.items():
        if not row.digest:
            continue
        try:
            file = open_member(path)
        except OSError:
            file = None
        if file is None:
            yield f"{path} is missing"
            continue
        with file:
            if file_hash(file, row.digest.partition("=")[0]) != row.digest:
                yield f"{path} differs from its hash in RECORD"
