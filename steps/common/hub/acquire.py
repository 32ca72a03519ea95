"""What `apply` of the weights step does, in order: list, reuse, download, look at the tensors."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from runbook.protocol import Context, Item, StepFailure
from runbook.steps.common.disk import disk_failure, shortage
from runbook.steps.common.hub import cache, digests, hub, room
from runbook.steps.common.hub.download import Download, Tuning
from runbook.steps.common.hub.hub import Busy, Hub
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.part import claim, discard, unrecorded
from runbook.steps.common.hub.stamp import NAME, Record, Stamp
from runbook.steps.common.pacing import Rate, backoff
from runbook.steps.weights import tensors

LOCK = ".runbook-weights.lock"
DEFAULT_TUNING = Tuning()


def acquire(ctx: Context, folder: Path, wanted: dict[str, Any], repo_type: str = "model") -> None:
    """Make the folder hold the wanted files. Resumable at any point."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            token = hub.token(ctx)
            sources = hub.hubs(ctx.inputs.endpoint, ctx.inputs.mirrors, token, repo_type)
            stamp = _begin(ctx, folder, wanted, sources)
            _complete(ctx, folder, stamp, sources)
    except OSError as error:
        raise disk_failure(error, folder) from error


def _complete(
    ctx: Context,
    folder: Path,
    stamp: Stamp,
    sources: Sequence[Hub],
) -> None:
    listing = stamp.listing
    doubtful = listing.entries if ctx.forced else stamp.unproven(folder, ctx.inputs.verify)
    missing = _reuse(ctx, folder, stamp, list(doubtful), sources[0].repo_type)
    if failure := shortage(folder, room.needed(folder, missing)):
        raise failure
    here = listing.bytes - sum(entry.size for entry in missing)

    def done(entry: Entry) -> None:
        _record(stamp, folder, entry, "downloaded", ctx.inputs.verify == "sha256")
        ctx.log(f"{entry.path}: {entry.size} bytes")

    rate = Rate()

    def progress(fetched: int, files: list[Item]) -> None:
        speed = rate.describe(fetched, listing.bytes - here)
        ctx.progress(here + fetched, listing.bytes, "bytes", speed, files)

    download = Download(
        listing,
        folder,
        sources,
        workers=ctx.inputs.workers,
        verify=ctx.inputs.verify,
        patience=ctx.inputs.patience,
        bandwidth=ctx.inputs.bandwidth,
        tuning=DEFAULT_TUNING,
        on_done=done,
        on_event=ctx.notice,
        on_progress=progress,
    )
    if missing:
        download.run(missing)
    if reasons := tuple(tensors.problems(folder, [e.path for e in listing.entries])):
        raise StepFailure(
            f"{listing.repo} is whole but does not hold together: {reasons[0].message}",
            code="bad_tensors",
            cause="\n".join(reason.message for reason in reasons[:10]),
            remedy="widen `files` if a pattern leaves shards out; else choose another revision",
            reasons=reasons,
        )
    stamp.complete = True
    stamp.save(folder)
    _tidy(ctx, folder, stamp, sources[0].repo_type)
    ctx.log(f"{listing.repo} at {listing.revision}: {listing.bytes} bytes in {folder}")


def _begin(ctx: Context, folder: Path, wanted: dict[str, Any], sources: Sequence[Hub]) -> Stamp:
    """The record to work on: that of before if it is of the same wish, which pins a branch."""
    stamp = Stamp.load(folder)
    if stamp is not None and stamp.wanted == wanted:
        stamp.complete = False
        return stamp
    listing = _list(ctx, wanted, sources)
    ctx.log(
        f"{listing.repo} at {listing.revision}: {len(listing.entries)} files, {listing.bytes} bytes"
    )
    fresh = Stamp(wanted, listing)
    if stamp is not None:
        # What is the same in both keeps its record; what is ours and not wanted goes.
        before = {entry.path: entry for entry in stamp.listing.entries}
        same = {e.path for e in listing.entries if before.get(e.path) == e}
        fresh.records = {path: r for path, r in stamp.records.items() if path in same}
        _remove_files(folder, stamp, [path for path in stamp.records if path not in same])
    fresh.save(folder)
    return fresh


def _list(ctx: Context, wanted: dict[str, Any], sources: Sequence[Hub]) -> Listing:
    """Ask the sources in turn until one answers, as long as the inputs' patience lasts."""
    deadline = time.monotonic() + ctx.inputs.patience
    failures = 0
    while True:
        failures += 1
        waits: list[float] = []
        refusals: list[StepFailure] = []
        for source in sources:
            try:
                return source.list(wanted["repo"], wanted["revision"], wanted["files"])
            except Busy as busy:
                trouble: Exception = busy
                waits.append(busy.wait if busy.wait is not None else _pause(failures))
            except StepFailure as failure:
                trouble = failure
                refusals.append(failure)
            ctx.notice(f"{source.endpoint}: {trouble}")
        if not waits:
            raise refusals[0]  # the hub's own word, before that of its mirrors
        pause = min(waits) + _pause(1) / 10
        if time.monotonic() + pause > deadline:
            raise StepFailure(
                f"the hub does not list {wanted['repo']}",
                code="hub_unreachable",
                cause=str(trouble),
                remedy="check the network and the endpoint, then run again",
                retryable=True,
            )
        ctx.notice(f"next try in {pause:.1f} s")
        time.sleep(pause)


def _pause(failures: int) -> float:
    return backoff(failures, DEFAULT_TUNING.first_wait, DEFAULT_TUNING.longest_wait)


def _reuse(
    ctx: Context, folder: Path, stamp: Stamp, missing: list[Entry], repo_type: str
) -> list[Entry]:
    """Adopt files that are in place and right, link those of the cache; returns the others."""
    found: dict[Entry, Path] = {}
    linked: set[Entry] = set()
    repo, link = ctx.inputs.repo, ctx.inputs.link
    for entry in missing:
        path = folder / entry.path
        if path.is_file() and path.stat().st_size == entry.size:
            found[entry] = path
        elif copy := cache.cached(repo, entry, folder, link, repo_type):
            found[entry] = copy
            linked.add(entry)
    left = {entry.path: entry for entry in missing}
    done, size = 0, sum(entry.size for entry in found)
    if found:
        ctx.log(f"{len(found)} files are on this machine: reading {size} bytes")
    with closing(digests.digest_many((path, entry) for entry, path in found.items())) as results:
        for entry, digest in results:
            done += entry.size
            ctx.progress(done, size, "bytes", f"reading {entry.path}")
            path = found[entry]
            if isinstance(digest, OSError) or not digests.matches(entry, digest):
                ctx.log(f"{path} is not {entry.path} as listed: it is not used")
                _forget(stamp, folder, entry)
            elif entry not in linked:
                before = stamp.records.get(entry.path)
                if before is not None and before.holds(path):
                    origin = before.origin
                else:
                    origin = "downloaded" if unrecorded(path) else "adopted"
                _record(stamp, folder, entry, origin, True)
                ctx.log(f"{entry.path}: was here")
                del left[entry.path]
            else:
                claim(folder / entry.path, entry)
                if how := cache.reuse(path, folder / entry.path, ctx.inputs.link):
                    _record(stamp, folder, entry, "linked", True)
                    ctx.log(f"{entry.path}: {how} of {path}")
                    del left[entry.path]
                else:
                    ctx.log(f"{path} cannot be linked here: set `link: symlink` to use it in place")
    for entry in left.values():
        path = folder / entry.path
        if path.exists() and entry.path not in stamp.records:
            aside = path.with_name(f"{path.name}.replaced")
            path.rename(aside)
            ctx.log(f"{entry.path}: another file was in its place, now {aside.name}")
    return list(left.values())


def _record(stamp: Stamp, folder: Path, entry: Entry, origin: str, verified: bool) -> None:
    stamp.records[entry.path] = Record.of(folder / entry.path, origin, verified)
    stamp.save(folder)
    discard(folder / entry.path)


def _forget(stamp: Stamp, folder: Path, entry: Entry) -> None:
    """A file is as it was recorded and yet wrong. Ours goes at once, so that nothing trusts it."""
    record, path = stamp.records.get(entry.path), folder / entry.path
    if record is not None and record.holds(path):
        if record.origin != "adopted":
            path.unlink()
        del stamp.records[entry.path]
        stamp.save(folder)


def _tidy(ctx: Context, folder: Path, stamp: Stamp, repo_type: str) -> None:
    """Remove our leftovers; name those of others."""
    for path in cache.own_leftovers(folder):
        path.unlink(missing_ok=True)
    for path, size in cache.foreign_leftovers(folder, stamp.listing.repo, repo_type):
        ctx.log(f"left by another tool, not removed: {path} ({size} bytes on disk)")


def remove(folder: Path) -> None:
    """Remove what the step downloaded or linked, not what its user had put there."""
    stamp = Stamp.load(folder)
    if stamp is not None:
        _remove_files(folder, stamp, list(stamp.records))
    if folder.is_dir():
        for path in cache.own_leftovers(folder):
            path.unlink(missing_ok=True)
        for name in (NAME, LOCK):
            (folder / name).unlink(missing_ok=True)
        for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            _remove_if_empty(path)
        _remove_if_empty(folder)


def _remove_files(folder: Path, stamp: Stamp, paths: Sequence[str]) -> None:
    for path in paths:
        record = stamp.records[path]
        if record.origin != "adopted" and record.holds(folder / path):
            (folder / path).unlink()


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One at a time, over workspaces too: a destination may be shared."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StepFailure(
                f"another run downloads to {folder}",
                code="destination_busy",
                cause="its lock is held",
                remedy="wait for it: `runbook wait`",
                retryable=True,
            ) from error
        yield
    finally:
        os.close(descriptor)
