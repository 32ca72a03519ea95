"""What a wheel installed, by the RECORD in its metadata folder."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
from pathlib import Path

from runbook.steps.common.pip.wheels import CHUNK


def files_of(tree: Path, dist_info: str) -> list[tuple[str, str, int | None]]:
    """(path below `tree`, `sha256=` digest or "", bytes or None) of each file of a wheel.

    Empty if the wheel is not installed in `tree`.
    """
    try:
        text = (tree / dist_info / "RECORD").read_text()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        (path, digest, int(size) if size else None)
        for path, digest, size in csv.reader(text.splitlines())
    ]


def damage(tree: Path, dist_info: str) -> str:
    """The first file of an installed wheel that is missing or differs; "" if all are as they
    were. A wheel that is not installed is reported by its RECORD."""
    files = files_of(tree, dist_info)
    if not files:
        return f"{dist_info}/RECORD"
    for path, digest, size in files:
        try:
            if size is not None and os.stat(tree / path).st_size != size:
                return path
            if digest and _digest(tree / path) != digest:
                return path
        except OSError:
            return path
    return ""


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()


def move(source: Path, target: Path, dist_info: str) -> None:
    """Move an installed wheel from one tree into another of the same file system.

    Its RECORD goes last: a move that was cut off shows as damage.
    """
    record = f"{dist_info}/RECORD"
    paths = [path for path, _, _ in files_of(source, dist_info) if path != record]
    (target / record).unlink(missing_ok=True)
    for path in [*paths, record]:
        if not (source / path).exists():  # `bin` scripts that pip leaves out of a target tree
            continue
        _sync(source / path)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / path, target / path)


def remove(tree: Path, dist_info: str) -> None:
    """Remove an installed wheel, its RECORD last, and the folders that this leaves empty."""
    record = f"{dist_info}/RECORD"
    paths = [path for path, _, _ in files_of(tree, dist_info) if path != record]
    for path in [*paths, record]:
        (tree / path).unlink(missing_ok=True)
    for folder in sorted({(tree / path).parent for path in [*paths, record]}, reverse=True):
        while folder != tree and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
