"""Records of what a folder was made from, cheap to compare: inputs, and files by size and time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Stats = dict[str, list[int]]


def digest(inputs: SimpleNamespace, version: str) -> str:
    """Identifies the inputs of a step of some version."""
    values = {**vars(inputs), "version": version}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def stats(folder: Path) -> Stats:
    """Size and time of modification in nanoseconds of each file of a folder, or of a file."""
    found: Stats = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    status = entry.stat()
                    found[entry.name] = [status.st_size, status.st_mtime_ns]
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        status = folder.stat()
        found[folder.name] = [status.st_size, status.st_mtime_ns]
    return found


def difference(recorded: Mapping[str, Any], present: Stats) -> str:
    """The first file that is not as recorded, in words; empty if there is none."""
    for name, status in recorded.items():
        if name not in present:
            return f"{name} is gone"
        if present[name] != status:
            return f"{name} changed"
    return next((f"{name} is new" for name in present if name not in recorded), "")
