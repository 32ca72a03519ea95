"""What is on this machine already: files in place, files of the cache, and what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from runbook.protocol import Context
from runbook.steps.common.hub import cache, digests, parts
from runbook.steps.common.hub.inventory import JOURNAL, NAME, Inventory, Record
from runbook.steps.common.hub.listing import Entry
from runbook.steps.common.hub.part import place

LOCK = ".runbook-weights.lock"


def reuse(
    ctx: Context, folder: Path, here: Inventory, missing: list[Entry], repo_type: str
) -> list[Entry]:
    """Adopt files that are in place and right, link those of the cache; returns the others. What
    is in the way of a file and not ours is set aside."""
    found: dict[Entry, Path] = {}
    repo, link = ctx.inputs.repo, ctx.inputs.link
    for entry in missing:
        path = folder / entry.path
        if path.is_file() and path.stat().st_size == entry.size:
            found[entry] = path
        elif copy := cache.cached(repo, entry, folder, link, repo_type):
            found[entry] = copy
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
                _forget(here, folder, entry)
            elif _take(ctx, folder, here, entry, path):
                del left[entry.path]
    for entry in left.values():
        _make_way(ctx, folder, here, entry)
    return list(left.values())


def _take(ctx: Context, folder: Path, here: Inventory, entry: Entry, path: Path) -> bool:
    """Take a file whose bytes are right, from where it is."""
    target = folder / entry.path
    if path == target:
        before = here.records.get(entry.path)
        ours = before is not None and before.holds(path)
        origin = before.origin if ours and before is not None else "adopted"
        here.add(folder, entry, Record.of(path, origin, True))
        parts.discard(folder, entry.path)
        ctx.log(f"{entry.path}: was here")
        return True
    _make_way(ctx, folder, here, entry)
    temporary = parts.paths(folder, entry.path)[0].with_suffix(".link")
    how = cache.link(path, temporary, ctx.inputs.link)
    if not how:
        ctx.log(f"{path} cannot be linked here: set `link: symlink` to use it in place")
        return False
    place(temporary, target, lambda made: here.add(folder, entry, Record.of(made, "linked", True)))
    parts.discard(folder, entry.path)
    ctx.log(f"{entry.path}: {how} of {path}")
    return True


def _make_way(ctx: Context, folder: Path, here: Inventory, entry: Entry) -> None:
    """Set aside what stands where a file shall be, if it is not ours: what is in its place, and a
    file in the place of one of its folders."""
    path = folder / entry.path
    above = [p for p in path.parents if p.is_relative_to(folder) and p != folder]
    for spot in (*reversed(above), path):
        if not spot.is_symlink() and not spot.exists():
            return
        if spot != path and spot.is_dir():
            continue
        record = here.records.get(entry.path) if spot == path else None
        if record is not None and record.holds(spot):
            return
        if record is not None and record.origin != "adopted" and spot.is_file():
            return  # ours, and changed since: it is replaced
        aside = _free(spot)
        spot.rename(aside)
        ctx.notice(f"{entry.path}: something else was in its place, now {aside.name}")
        return


def _free(path: Path) -> Path:
    """A name beside a path that nothing has."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.replaced" + (f".{number}" if number > 1 else ""))
        if not aside.is_symlink() and not aside.exists():
            return aside
    raise FileExistsError(f"too many files are named {path.name}.replaced")


def _forget(here: Inventory, folder: Path, entry: Entry) -> None:
    """A file is as it was recorded and yet wrong. Ours goes at once, so that nothing trusts it."""
    record, path = here.records.get(entry.path), folder / entry.path
    if record is not None and record.holds(path):
        if record.origin != "adopted":
            path.unlink()
        here.drop(folder, entry)


def tidy(ctx: Context, folder: Path, here: Inventory, repo_type: str) -> None:
    """Remove our leftovers; name those of others."""
    _remove_leftovers(folder)
    for path, size in cache.foreign_leftovers(folder, here.listing.repo, repo_type):
        ctx.log(f"left by another tool, not removed: {path} ({size} bytes on disk)")


def remove(folder: Path) -> None:
    """Remove what the step downloaded or linked, not what its user had put there."""
    here = Inventory.load(folder)
    if here is not None:
        remove_files(folder, here, list(here.records))
    if folder.is_dir():
        (folder / parts.FOLDER / JOURNAL).unlink(missing_ok=True)
        _remove_leftovers(folder)
        for name in (NAME, LOCK):
            (folder / name).unlink(missing_ok=True)
        for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            _remove_if_empty(path)
        _remove_if_empty(folder)


def remove_files(folder: Path, here: Inventory, paths: Sequence[str]) -> None:
    for path in paths:
        record = here.records[path]
        if record.origin != "adopted" and record.holds(folder / path):
            (folder / path).unlink()


def _remove_leftovers(folder: Path) -> None:
    for path in (*parts.leftovers(folder), *folder.glob(f".{NAME}.*.tmp")):
        path.unlink(missing_ok=True)
    own = folder / parts.FOLDER
    if own.is_dir():
        _remove_if_empty(own)


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
