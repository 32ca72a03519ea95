"""Small books for tests of the engine."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

BOOKS = Path(__file__).parent / "books"


def left_behind(take: Callable[[], int]) -> int:
    """A lock as a worker holds it whose supervisor has ended: the descriptor that another process
    took it with."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            socket.send_fds(theirs, [b"x"], [take()])
        finally:
            os._exit(0)
    theirs.close()  # without a descriptor, its end is ours to see
    with ours:
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    return descriptor


def write_book(folder: Path, *steps: dict[str, Any], **document: Any) -> Path:
    """A document of `work.py:Work` steps; `file` defaults to the step's id."""
    shutil.copy(BOOKS / "work.py", folder)
    full = []
    for step in steps:
        step = {"uses": "work.py:Work", **step}
        if step["uses"] == "work.py:Work":
            step["with"] = {"file": step["id"], **step.get("with", {})}
        full.append(step)
    path = folder / "book.yaml"
    text = yaml.safe_dump({"runbook": 1, "name": "test", **document, "steps": full})
    path.write_text(text)
    return path
