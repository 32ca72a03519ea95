"""Small books for tests of the engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

BOOKS = Path(__file__).parent / "books"


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
