"""Files that are on this machine already: in the Hugging Face cache, and left by other tools."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from runbook.steps.common.hub.listing import Entry

FICLONE = 0x40049409
"""linux/fs.h: share the blocks of another file, copied when written (btrfs, xfs)."""


def hub_cache() -> Path:
    """Where huggingface_hub keeps its cache, by the same variables (it is costly to import)."""
    if own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    return Path(home).expanduser() / "hub"


def _blobs(repo: str, repo_type: str) -> Path:
    return hub_cache() / f"{repo_type}s--{repo.replace('/', '--')}" / "blobs"


def cached(
    repo: str, entry: Entry, folder: Path, how: str, repo_type: str = "model"
) -> Path | None:
    """The cache's copy of a file, by size, if it can be had in `folder` without copying it.

    Blobs are named by their digest, whatever the revision. Hard links and reflinks do not leave
    a file system.
    """
    if how == "none":
        return None
    path = _blobs(repo, repo_type) / entry.digest.value
    try:
        found = path.stat()
    except OSError:
        return None
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if found.st_size != entry.size or (how != "symlink" and found.st_dev != existing.stat().st_dev):
        return None
    return path.resolve()


def link(source: Path, target: Path, how: str) -> str:
    """Make `target`, a name of ours, the same file without copying it; returns how, or "" if it
    cannot be done.

    `hardlink` falls back to `reflink`: both give a file that outlives the cache. A symlink does
    not, so it is made only when asked for.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    ways = {
        "hardlink": (_hardlink, _reflink),
        "reflink": (_reflink,),
        "symlink": (_symlink,),
    }.get(how, ())
    for way in ways:
        target.unlink(missing_ok=True)
        try:
            way(source, target)
        except OSError:
            # Another file system, or one that cannot: the next way, at last the download.
            target.unlink(missing_ok=True)
            continue
        return way.__name__.strip("_")
    return ""


def _hardlink(source: Path, target: Path) -> None:
    os.link(source, target)


def _reflink(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        fcntl.ioctl(write.fileno(), FICLONE, read.fileno())
        os.fsync(write.fileno())


def _symlink(source: Path, target: Path) -> None:
    target.symlink_to(source)


def foreign_leftovers(
    folder: Path, repo: str, repo_type: str = "model"
) -> Iterator[tuple[Path, int]]:
    """Unfinished files of huggingface_hub, here and in its cache, with their sizes on disk."""
    places = (
        folder / ".cache" / "huggingface" / "download",
        _blobs(repo, repo_type),
    )
    for place in places:
        for path in sorted(place.rglob("*.incomplete")) if place.is_dir() else ():
            yield path, path.stat().st_blocks * 512
