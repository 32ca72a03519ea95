"""How much is still to come, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runbook.protocol import Context, Reason, StepFailure, Work
from runbook.steps.common.disk import shortage
from runbook.steps.common.hub import cache, pins
from runbook.steps.common.hub.inventory import Inventory
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.parts import trusted_bytes

PLAN_TIMEOUT = 5.0
"""Seconds that the hub may be silent for when a plan asks; without an answer it goes without the
size."""
PLAN_SECONDS = 15.0
"""Seconds that a listing may take altogether in a plan."""


def needed(folder: Path, entries: Sequence[Entry]) -> int:
    """Bytes still to be fetched."""
    return sum(e.size - trusted_bytes(folder, e) for e in entries)


def estimate(
    ctx: Context, folder: Path, listing: Listing | None, repo_type: str = "model"
) -> tuple[tuple[Reason, ...], Work]:
    """What is still to be fetched, and what speaks against it. Asks the hub only if there is no
    listing yet, once and briefly; a plan must not fail for want of a network."""
    reasons: list[Reason] = []
    if listing is None:
        listing, problem = _ask(ctx, repo_type)
        if problem is not None:
            reasons.append(problem)
    if listing is None:
        return tuple(reasons), Work()
    if listing.revision != ctx.inputs.revision:
        message = f"{ctx.inputs.revision} of {listing.repo} is {listing.revision}"
        if pins.pinned(ctx.workspace, repo_type, vars(ctx.inputs)):
            message += ", resolved before and kept"
        reasons.append(Reason("revision_resolved", message, severity="info"))
    here = Inventory.load(folder)
    records = here.records if here else {}
    missing = [
        entry
        for entry in listing.entries
        if (record := records.get(entry.path)) is None or not record.holds(folder / entry.path)
    ]
    repo, link = ctx.inputs.repo, ctx.inputs.link
    missing = [e for e in missing if not cache.cached(repo, e, folder, link, repo_type)]
    size = needed(folder, missing)
    if failure := shortage(folder, size):
        reasons.append(Reason(failure.code, failure.message, failure.remedy))
    for path, left in cache.foreign_leftovers(folder, repo, repo_type):
        message = f"{path} was left by another tool ({left} bytes on disk)"
        reasons.append(Reason("foreign_leftover", message, f"rm '{path}'", "info"))
    return tuple(reasons), Work(bytes=size, disk=size)


def _ask(ctx: Context, repo_type: str) -> tuple[Listing | None, Reason | None]:
    from runbook.steps.common.hub import login
    from runbook.steps.common.hub.refusals import Busy
    from runbook.steps.common.hub.source import sources

    hub = sources(ctx.inputs.endpoint, [], login.token(ctx), repo_type)[0]
    hub.timeout = PLAN_TIMEOUT
    try:
        given = ctx.inputs
        revision = pins.pinned(ctx.workspace, repo_type, vars(given)) or given.revision
        return hub.list(given.repo, revision, given.files, PLAN_SECONDS), None
    except Busy as busy:
        return None, Reason("size_unknown", f"the hub gives no listing: {busy}", severity="info")
    except StepFailure as failure:
        return None, Reason(failure.code, failure.message, failure.remedy)
