"""The record beside a finished toolkit: from what it was made, and how to see that it is whole
without reading it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runbook.files import read_json, write_json

NAME = ".runbook-toolkit.json"
FORMAT = 1


def path(prefix: Path) -> Path:
    return prefix / NAME


def is_ours(entry: Path) -> bool:
    """Whether a file in a prefix is the stamp, or what a kill left of writing it."""
    return NAME in entry.name


def digest(lock: Path) -> str:
    """SHA-256 of a lock file; "" if it cannot be read."""
    try:
        return hashlib.sha256(lock.read_bytes()).hexdigest()
    except OSError:
        return ""


def claim(prefix: Path, provider: str) -> None:
    """Mark a folder as a toolkit in the making."""
    prefix.mkdir(parents=True, exist_ok=True)
    write_json(path(prefix), {"format": FORMAT, "provider": provider, "complete": False})


def complete(prefix: Path, facts: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Record a proven toolkit; `files` are those whose change means that it is damaged."""
    marks = {str(file.relative_to(prefix)): mark(file) for file in files}
    write_json(path(prefix), {"format": FORMAT, "complete": True, **facts, "files": marks})


def read(prefix: Path) -> dict[str, Any] | None:
    """The record of a toolkit of ours, complete or not; None where there is none."""
    stamp = read_json(path(prefix))
    return stamp if isinstance(stamp, dict) and stamp.get("format") == FORMAT else None


def mark(file: Path) -> list[int] | None:
    """Size in bytes and modification time in ns of a file; None if it is missing."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def changed(prefix: Path, stamp: Mapping[str, Any]) -> str:
    """The first recorded file that is missing or was changed; "" if there is none."""
    folder = os.fspath(prefix)
    for name, recorded in stamp["files"].items():
        try:
            status = os.stat(f"{folder}/{name}")
        except OSError:
            return str(name)
        if [status.st_size, status.st_mtime_ns] != recorded:
            return str(name)
    return ""
