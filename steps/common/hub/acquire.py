"""What `apply` does where files of a hub are wanted: list, reuse, download, look at the whole."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runbook.files import sync_folder
from runbook.protocol import Context, Item, Reason, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.disk import disk_failure, shortage
from runbook.steps.common.hub import expected, local, login, pins, refusals, room
from runbook.steps.common.hub.download import Download, Tuning
from runbook.steps.common.hub.inventory import Inventory, Record
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.parts import FOLDER
from runbook.steps.common.hub.refusals import Busy
from runbook.steps.common.hub.source import Source, sources
from runbook.steps.common.hub.untrusted import COMMIT
from runbook.steps.common.pacing import Rate, backoff

DEFAULT_TUNING = Tuning()

Problems = Callable[[Path, Sequence[str]], Iterator[Reason]]
"""What is wrong with the named files of a folder, looked at as a whole."""


def acquire(
    ctx: Context, folder: Path, wanted: dict[str, Any], repo_type: str, problems: Problems
) -> None:
    """Make the folder hold the wanted files. Resumable at any point."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            (folder / FOLDER).mkdir(exist_ok=True)
            places = sources(ctx.inputs.endpoint, ctx.inputs.mirrors, login.token(ctx), repo_type)
            here = _begin(ctx, folder, wanted, places[0])
            expected.of_listing(here.listing, ctx.inputs.sha256)
            _fetch(ctx, folder, here, places)
            expected.of_files(folder, here.listing, ctx.inputs.sha256)
            _conclude(ctx, folder, here, problems)
            local.tidy(ctx, folder, here, repo_type)
    except OSError as error:
        raise disk_failure(error, folder) from error


def _fetch(ctx: Context, folder: Path, here: Inventory, places: Sequence[Source]) -> None:
    """Take what is on this machine already, and download the rest."""
    listing = here.listing
    doubtful = listing.entries if ctx.forced else here.unproven(folder, ctx.inputs.verify)
    missing = local.reuse(ctx, folder, here, list(doubtful), places[0].repo_type)
    if failure := shortage(folder, room.needed(folder, missing)):
        raise failure
    before = listing.bytes - sum(entry.size for entry in missing)
    rate = Rate()

    def record(entry: Entry, path: Path) -> None:
        here.add(folder, entry, Record.of(path, "downloaded", download.verifies))

    def done(entry: Entry) -> None:
        ctx.log(f"{entry.path}: {entry.size} bytes")

    def progress(fetched: int, files: list[Item]) -> None:
        speed = rate.describe(fetched, listing.bytes - before)
        ctx.progress(before + fetched, listing.bytes, "bytes", speed, files)

    download = Download(
        listing,
        folder,
        places,
        workers=ctx.inputs.workers,
        verify=ctx.inputs.verify,
        patience=ctx.inputs.patience,
        bandwidth=ctx.inputs.bandwidth,
        tuning=DEFAULT_TUNING,
        record=record,
        on_done=done,
        on_event=ctx.notice,
        on_progress=progress,
    )
    if missing:
        download.run(missing)


def _conclude(ctx: Context, folder: Path, here: Inventory, problems: Problems) -> None:
    """Look at the files as a whole, and record that all is here."""
    listing = here.listing
    paths = [entry.path for entry in listing.entries]
    if reasons := tuple(problems(folder, paths)):
        raise StepFailure(
            f"{listing.repo} is whole but does not hold together: {reasons[0].message}",
            code="bad_tensors",
            cause="\n".join(reason.message for reason in reasons[:10]),
            remedy="widen `files` if a pattern leaves shards out; else choose another revision",
            reasons=reasons,
        )
    for parent in {(folder / path).parent for path in paths}:
        sync_folder(parent)
    here.complete = True
    here.save(folder)
    ctx.log(f"{listing.repo} at {listing.revision}: {listing.bytes} bytes in {folder}")


def _begin(ctx: Context, folder: Path, wanted: dict[str, Any], hub: Source) -> Inventory:
    """The record to work on: that of before if it is of the same wish, which pins a branch."""
    here = Inventory.load(folder)
    pinned = pins.pinned(ctx, hub.repo_type, wanted)
    if here is not None and here.wanted == wanted and pinned in (None, here.listing.revision):
        here.complete = False
        pins.keep(ctx, hub.repo_type, wanted, here.listing.revision)
        return here
    try:
        listing = _list(ctx, wanted | {"revision": pinned or wanted["revision"]}, hub)
    except StepFailure as failure:
        if pinned and failure.code == "revision_not_found":
            file = ctx.lock.where(pins.name(hub.repo_type, wanted))
            text = f"{pinned} is locked in {file}: {{command}} resolves the branch anew"
            failure.remedy = Remedy("lock", ("{step}", "--upgrade"), text=text)
        raise
    pins.keep(ctx, hub.repo_type, wanted, listing.revision)
    count = f"{len(listing.entries)} files, {listing.bytes} bytes"
    ctx.log(f"{listing.repo} at {listing.revision}: {count}")
    if not COMMIT.fullmatch(wanted["revision"]):
        became = "stays" if pinned else "is now"
        file = ctx.lock.where(pins.name(hub.repo_type, wanted))
        ctx.notice(
            f"{listing.repo}: {wanted['revision']} {became} {listing.revision}, locked in {file}"
        )
    fresh = Inventory(wanted, listing)
    if here is not None:
        # What is the same in both keeps its record; what is ours and not wanted goes.
        before = {entry.path: entry for entry in here.listing.entries}
        same = {e.path for e in listing.entries if before.get(e.path) == e}
        fresh.records = {path: r for path, r in here.records.items() if path in same}
        local.remove_files(folder, here, [path for path in here.records if path not in same])
    fresh.save(folder)
    return fresh


def _list(ctx: Context, wanted: dict[str, Any], hub: Source) -> Listing:
    """Ask the hub until it answers, as long as the inputs' patience lasts. No mirror is asked:
    only the hub says what the bytes are."""
    deadline = time.monotonic() + ctx.inputs.patience
    failures = 0
    trouble: Busy | None = None
    while True:
        failures += 1
        try:
            left = deadline - time.monotonic()
            return hub.list(wanted["repo"], wanted["revision"], wanted["files"], left)
        except Busy as busy:
            last = busy
        if trouble is None or not last.cut:
            trouble = last
        pause = (_pause(failures) if last.wait is None else last.wait) + _pause(1) / 10
        if time.monotonic() + pause > deadline:
            raise refusals.unlisted(wanted["repo"], trouble, last)
        ctx.notice(f"{last}; next try in {pause:.1f} s")
        time.sleep(pause)


def _pause(failures: int) -> float:
    return backoff(failures, DEFAULT_TUNING.first_wait, DEFAULT_TUNING.longest_wait)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One at a time, over workspaces too: a destination may be shared."""
    descriptor = os.open(folder / local.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StepFailure(
                f"another run downloads to {folder}",
                code="destination_busy",
                cause="its lock is held",
                remedy=Remedy("wait", text="{command} until it is done"),
                retryable=True,
            ) from error
        yield
    finally:
        os.close(descriptor)
