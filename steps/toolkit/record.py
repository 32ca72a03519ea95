"""What a wheel installed into a tree, by the RECORD in its metadata folder.

A RECORD is the wheel's own word: rows that lead out of the tree, by `..` or through a link, are
as if they were not there (pip writes such rows for the programs it leaves out of a tree).
"""

from __future__ import annotations

import os
from pathlib import Path

from runbook.steps.common.packages.record import (
    RecordError,
    Row,
    file_hash,
    outside,
    parse_record,
)


def rows_of(tree: Path, dist_info: str) -> dict[str, Row]:
    """The files of a wheel by path below `tree`; empty if it is not installed in `tree`."""
    try:
        rows = parse_record((tree / dist_info / "RECORD").read_bytes())
    except (OSError, RecordError):
        return {}
    real = tree.resolve()
    return {path: row for path, row in rows.items() if _within(real, path)}


def _within(tree: Path, path: str) -> bool:
    """Whether a path of a RECORD is that of a file in `tree` (without links in its own path)."""
    if outside(path):
        return False
    return (tree / path).parent.resolve().is_relative_to(tree)


def damage(tree: Path, dist_info: str) -> str:
    """The first file of an installed wheel that is missing or differs; "" if all are as they
    were. A wheel that is not installed is reported by its RECORD."""
    rows = rows_of(tree, dist_info)
    if not rows:
        return f"{dist_info}/RECORD"
    for path, row in rows.items():
        file = tree / path
        try:
            if not file.is_file() or (row.size is not None and file.stat().st_size != row.size):
                return path
            if row.digest:
                with file.open("rb") as opened:
                    if file_hash(opened, row.digest.partition("=")[0]) != row.digest:
                        return path
        except OSError:
            return path
    return ""


def move(source: Path, target: Path, dist_info: str) -> None:
    """Move an installed wheel from one tree into another of the same file system.

    Its RECORD goes last: a move that was cut off shows as damage.
    """
    record = f"{dist_info}/RECORD"
    (target / record).unlink(missing_ok=True)
    for path in _record_last(source, dist_info):
        if not (source / path).is_file() or not _within(target.resolve(), path):
            continue
        _sync(source / path)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / path, target / path)


def remove(tree: Path, dist_info: str) -> None:
    """Remove an installed wheel, its RECORD last, and the folders that this leaves empty."""
    paths = _record_last(tree, dist_info)
    for path in paths:
        if (tree / path).is_symlink() or not (tree / path).is_dir():
            (tree / path).unlink(missing_ok=True)
    for folder in sorted({(tree / path).parent for path in paths}, reverse=True):
        while folder != tree and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _record_last(tree: Path, dist_info: str) -> list[str]:
    record = f"{dist_info}/RECORD"
    return [*(path for path in rows_of(tree, dist_info) if path != record), record]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
