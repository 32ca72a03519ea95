"""What a branch or tag was when it was first asked for: kept beside what `undo` removes.

`<workspace>/pins/` has a file for each, as `model owner%2Fname@main`, that holds the commit. One
that its user removes is resolved anew; a `revision` that is a commit has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from runbook.files import make_folder, read_regular, write_atomic
from runbook.steps.common.hub.untrusted import COMMIT

FOLDER = "pins"


def place(workspace: Path, repo_type: str, wanted: Mapping[str, Any]) -> Path:
    """Where it is kept; branches that are longer than a file's name may be are told by their end
    and beginning alone."""
    name = f"{repo_type} {quote(wanted['repo'], safe='')}@{quote(wanted['revision'], safe='')}"
    return workspace / FOLDER / (name if len(name) < 200 else f"{name[:100]}...{name[-90:]}")


def pinned(workspace: Path, repo_type: str, wanted: Mapping[str, Any]) -> str | None:
    """The commit that the wanted branch was; None if none is kept, or it is a commit itself."""
    if COMMIT.fullmatch(wanted["revision"]):
        return None
    said = read_regular(place(workspace, repo_type, wanted), 100) or b""
    commit = said.decode(errors="replace").strip()
    return commit if COMMIT.fullmatch(commit) else None


def keep(workspace: Path, repo_type: str, wanted: Mapping[str, Any], commit: str) -> None:
    """Keep what a branch is, if nothing is kept of it yet."""
    if COMMIT.fullmatch(wanted["revision"]) or pinned(workspace, repo_type, wanted):
        return
    path = place(workspace, repo_type, wanted)
    make_folder(path.parent)
    write_atomic(path, commit.encode() + b"\n")
