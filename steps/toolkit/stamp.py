"""The stamp in a toolkit's folder: it says that the folder is ours, and from what it was made."""

from __future__ import annotations

from pathlib import Path

from runbook.steps.common.stamp import Stamp
from runbook.steps.common.store import sha256_file

KIND = "toolkit"
NAME = ".runbook-toolkit.json"


def is_ours(entry: Path) -> bool:
    """Whether a file in a prefix is the stamp, or what a kill left of writing it."""
    return NAME in entry.name


def digest(lock: Path) -> str:
    """SHA-256 of a lock file; "" if it cannot be read."""
    try:
        return sha256_file(lock)
    except OSError:
        return ""


def claim(prefix: Path, provider: str) -> None:
    """Mark a folder as a toolkit in the making."""
    prefix.mkdir(parents=True, exist_ok=True)
    Stamp(KIND, {"provider": provider}, complete=False).write(prefix / NAME)


def read(prefix: Path) -> Stamp | None:
    """The record of a toolkit of ours, complete or not; None where there is none."""
    made = Stamp.read(prefix / NAME, KIND)
    return made if made is not None and isinstance(made.inputs.get("provider"), str) else None
