"""What a branch or tag of a hub was when it was first asked for, as the book's lock has it.

Its names are `model owner/name@main`, its values commits; a `revision` that is a commit has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbook.protocol import Context
from runbook.steps.common.hub.untrusted import COMMIT


def name(repo_type: str, wanted: Mapping[str, Any]) -> str:
    """What the lock calls a branch."""
    return f"{repo_type} {wanted['repo']}@{wanted['revision']}"


def pinned(ctx: Context, repo_type: str, wanted: Mapping[str, Any]) -> str | None:
    """The commit that the wanted branch was; None if the lock has none, or it is a commit."""
    if COMMIT.fullmatch(wanted["revision"]):
        return None
    return ctx.lock.get(name(repo_type, wanted))


def keep(ctx: Context, repo_type: str, wanted: Mapping[str, Any], commit: str) -> None:
    """Keep what a branch is, if nothing is kept of it yet."""
    if not COMMIT.fullmatch(wanted["revision"]):
        ctx.lock.keep(name(repo_type, wanted), commit)
