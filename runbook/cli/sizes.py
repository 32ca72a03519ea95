"""What lies where, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runbook.files import lies_inside
from runbook.state.workspace import Workspace


def size_of(path: Path | str) -> tuple[int, int]:
    """Files and bytes below a path, links not followed; what vanishes meanwhile counts nothing."""
    try:
        if not os.path.isdir(path) or os.path.islink(path):
            return 1, os.lstat(path).st_size
        found = [size_of(entry.path) for entry in os.scandir(path)]
    except OSError:
        return 0, 0
    return sum(files for files, _ in found), sum(count for _, count in found)


def made(workspace: Workspace, step: str, creates: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The paths that a step has made, with their sizes, none that lies in another of them: those
    inside the workspace that its record names as its outputs, and those that it says it `creates`,
    wherever they are."""
    record = workspace.checkpoint(step)
    root = f"{workspace.root}{os.sep}"
    texts = _texts(record["outputs"]) if record is not None else ()
    outputs = {os.path.normpath(text) for text in texts if text.startswith(root)}
    named = {path for path in outputs if path.startswith(root)}
    named |= {os.path.normpath(os.path.join(root, name)) for name in creates}
    there = sorted(path for path in named if os.path.lexists(path))
    outer = [path for path in there if not any(path.startswith(f"{o}{os.sep}") for o in there)]
    return [
        {
            "path": path,
            "bytes": size_of(path)[1],
            "stays": not lies_inside(workspace.root, path),
        }
        for path in outer
    ]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
