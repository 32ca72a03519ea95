"""What the steps with files of a hub have in common: a repository on this disk, every byte proven.

Makes a folder in the workspace (or `destination`) and, in it, `.runbook-weights.json`, by which a
quick check sees in milliseconds whether everything is as it was proven. Whatever ends a run, the
next one goes on from the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.protocol import Check, Context, Json, Reason, Work
from runbook.steps.common.hub import pins
from runbook.steps.common.hub.inventory import Inventory, name_of
from runbook.steps.common.hub.untrusted import COMMIT

if TYPE_CHECKING:
    from runbook.steps.common.hub.listing import Entry, Listing


class HubFiles:
    """To be derived from. `parent`: the folder of the workspace that a repository lies in."""

    repo_type = "model"
    parent = "weights"

    def check(self, ctx: Context) -> Check:
        folder = self.folder(ctx)
        if folder.exists() and not folder.is_dir():
            return Check.unsatisfied(Reason("not_a_folder", f"{folder} is a file, not a folder"))
        here = Inventory.load(folder)
        if here is None or here.wanted != wanted(ctx):
            why = (
                Reason("never_downloaded", f"{ctx.inputs.repo} is not in {folder}")
                if here is None
                else Reason("other_weights", f"{folder} holds {name_of(here.wanted)}")
            )
            return self._unsatisfied(ctx, folder, why)
        pinned = pins.pinned(ctx, self.repo_type, here.wanted)
        if pinned not in (None, here.listing.revision):
            message = f"{folder} holds {here.listing.revision}, and the book's lock has {pinned}"
            return self._unsatisfied(ctx, folder, Reason("other_weights", message))
        missing = list(here.unproven(folder, ctx.inputs.verify))
        if missing or not here.complete:
            return self._unsatisfied(ctx, folder, _missing(here, missing), here.listing)
        if ctx.deep and (reasons := tuple(self._prove(ctx, folder, here))):
            work = Work(bytes=sum(e.size for e in here.listing.entries))
            return Check.unsatisfied(*reasons, work=work)
        outputs: dict[str, Json] = {
            "path": str(folder),
            "repo": here.listing.repo,
            "revision": here.listing.revision,
            "bytes": here.listing.bytes,
            "files": len(here.listing.entries),
        }
        return Check.satisfied(outputs)

    def apply(self, ctx: Context) -> None:
        from runbook.steps.common.hub.acquire import acquire

        acquire(ctx, self.folder(ctx), wanted(ctx), self.repo_type, self.problems)

    def resolve(self, ctx: Context, anew: bool) -> Mapping[str, str]:
        """The commit of the branch: that which is locked, which is here, or which the hub says."""
        from runbook.steps.common.hub.room import commit

        given = wanted(ctx)
        if COMMIT.fullmatch(given["revision"]):
            return {}
        here = Inventory.load(self.folder(ctx))
        held = here.listing.revision if here is not None and here.wanted == given else None
        known = None if anew else pins.pinned(ctx, self.repo_type, given) or held
        return {pins.name(self.repo_type, given): known or commit(ctx, self.repo_type)}

    def undo(self, ctx: Context) -> None:
        from runbook.steps.common.hub.local import remove

        folder = self.folder(ctx)
        if here := Inventory.load(folder):
            pins.keep(ctx, self.repo_type, here.wanted, here.listing.revision)
        remove(folder)
        parent = folder.parent
        if not ctx.inputs.destination and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()

    def problems(self, folder: Path, names: Sequence[str]) -> Iterator[Reason]:
        """What is wrong with these files, looked at as a whole."""
        return iter(())

    def folder(self, ctx: Context) -> Path:
        """Where the files are to be."""
        if ctx.inputs.destination:
            return Path(ctx.inputs.destination).expanduser().absolute()
        name: str = ctx.inputs.repo.rpartition("/")[2]
        return ctx.workspace / self.parent / name

    def _unsatisfied(
        self, ctx: Context, folder: Path, why: Reason, listing: Listing | None = None
    ) -> Check:
        """Not there: what would it take? The only form of the check that may ask the hub."""
        from runbook.steps.common.hub.room import estimate

        reasons, work = estimate(ctx, folder, listing, self.repo_type)
        return Check.unsatisfied(why, *reasons, work=work)

    def _prove(self, ctx: Context, folder: Path, here: Inventory) -> Iterator[Reason]:
        """Read every byte, on all cores, and look at the files as a whole."""
        from runbook.steps.common.hub import digests

        total, done = here.listing.bytes, 0
        files = ((folder / entry.path, entry) for entry in here.listing.entries)
        for entry, found in digests.digest_many(files):
            done += entry.size
            ctx.progress(done, total, "bytes", entry.path)
            if isinstance(found, OSError):
                yield Reason("unreadable", f"{entry.path}: {found.strerror}")
            elif not digests.matches(entry, found):
                yield Reason("digest_mismatch", f"{entry.path}: {digests.wrong(entry, found)}")
        yield from self.problems(folder, [e.path for e in here.listing.entries])


def wanted(ctx: Context) -> dict[str, Any]:
    """The inputs that choose which bytes there are to be; from where they come is no matter."""
    return {
        "repo": ctx.inputs.repo,
        "revision": ctx.inputs.revision,
        "files": ctx.inputs.files,
    }


def _missing(here: Inventory, missing: list[Entry]) -> Reason:
    if not missing:
        return Reason("unfinished", "all files are here, but were not looked at as a whole")
    count = f"{len(missing)} of {len(here.listing.entries)} files"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    first = missing[0].path
    if not here.complete:
        return Reason("unfinished", f"{count} are not here yet: {first}{more}")
    return Reason("files_changed", f"{count} are missing or were changed: {first}{more}")
