"""How much is still to come, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runbook.protocol import Context, Reason, StepFailure, Work
from runbook.remedy import Remedy
from runbook.steps.common.disk import shortage
from runbook.steps.common.hub import cache, pins
from runbook.steps.common.hub.inventory import Inventory
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.parts import trusted_bytes
from runbook.steps.common.hub.refusals import Busy

if TYPE_CHECKING:
    from runbook.steps.common.hub.source import Source

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
        file = ctx.lock.where(pins.name(repo_type, vars(ctx.inputs)))
        known = pins.pinned(ctx, repo_type, vars(ctx.inputs))
        message += f", locked in {file}" if known else f"; `run` locks it in {file}"
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


def commit(ctx: Context, repo_type: str) -> str:
    """What the hub says that the wanted branch is."""
    try:
        return _hub(ctx, repo_type).commit(ctx.inputs.repo, ctx.inputs.revision, PLAN_SECONDS)
    except Busy as busy:
        raise StepFailure(
            f"the hub does not say what {ctx.inputs.revision} of {ctx.inputs.repo} is",
            code="hub_unreachable",
            cause=str(busy),
            remedy=Remedy("lock", text="check the network and the endpoint, then {command}"),
            retryable=True,
        ) from busy


def _hub(ctx: Context, repo_type: str) -> Source:
    """The hub, asked once and briefly."""
    from runbook.steps.common.hub import login
    from runbook.steps.common.hub.source import sources

    hub = sources(ctx.inputs.endpoint, [], login.token(ctx), repo_type)[0]
    hub.timeout = PLAN_TIMEOUT
    return hub


def _ask(ctx: Context, repo_type: str) -> tuple[Listing | None, Reason | None]:
    hub = _hub(ctx, repo_type)
    try:
        given = ctx.inputs
        revision = pins.pinned(ctx, repo_type, vars(given)) or given.revision
        return hub.list(given.repo, revision, given.files, PLAN_SECONDS), None
    except Busy as busy:
        return None, Reason("size_unknown", f"the hub gives no listing: {busy}", severity="info")
    except StepFailure as failure:
        return None, Reason(failure.code, failure.message, failure.remedy)
