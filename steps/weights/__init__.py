"""`uses: weights`: a model repository on this disk, every byte proven.

Makes `<workspace>/weights/<name>/` (or `destination`) and, in it, `.runbook-weights.json`, by
which a quick check sees in milliseconds whether everything is as it was proven. Whatever ends a
run, the next one goes on from the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.protocol import Check, Context, Json, Model, Reason, Work
from runbook.steps.common.hub.stamp import Stamp

if TYPE_CHECKING:
    from runbook.steps.common.hub.listing import Entry, Listing


class Weights:
    version = "1"
    repo_type = "model"
    Inputs = Model("runbook.steps.weights.models:Inputs")
    Outputs = Model("runbook.steps.weights.models:Outputs")

    def check(self, ctx: Context) -> Check:
        folder = self.folder(ctx)
        stamp = Stamp.load(folder)
        if stamp is None or stamp.wanted != wanted(ctx):
            why = (
                Reason("never_downloaded", f"{ctx.inputs.repo} is not in {folder}")
                if stamp is None
                else Reason("other_weights", f"{folder} holds {_name(stamp.wanted)}")
            )
            return self._unsatisfied(ctx, folder, why)
        missing = list(stamp.unproven(folder, ctx.inputs.verify))
        if missing or not stamp.complete:
            why = _missing(stamp, missing)
            return self._unsatisfied(ctx, folder, why, stamp.listing)
        if ctx.deep and (reasons := tuple(self._prove(ctx, folder, stamp))):
            work = Work(bytes=sum(e.size for e in stamp.listing.entries))
            return Check.unsatisfied(*reasons, work=work)
        outputs: dict[str, Json] = {
            "path": str(folder),
            "repo": stamp.listing.repo,
            "revision": stamp.listing.revision,
            "bytes": stamp.listing.bytes,
            "files": len(stamp.listing.entries),
        }
        return Check.satisfied(outputs)

    def apply(self, ctx: Context) -> None:
        from runbook.steps.common.hub.acquire import acquire

        acquire(ctx, self.folder(ctx), wanted(ctx), self.repo_type)

    def undo(self, ctx: Context) -> None:
        from runbook.steps.common.hub.acquire import remove

        folder = self.folder(ctx)
        remove(folder)
        parent = folder.parent
        if not ctx.inputs.destination and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()

    def folder(self, ctx: Context) -> Path:
        """Where the files are to be."""
        if ctx.inputs.destination:
            return Path(ctx.inputs.destination).expanduser().absolute()
        parent = "weights" if self.repo_type == "model" else "datasets"
        name: str = ctx.inputs.repo.rpartition("/")[2]
        return ctx.workspace / parent / name

    def _unsatisfied(
        self, ctx: Context, folder: Path, why: Reason, listing: Listing | None = None
    ) -> Check:
        """Not there: what would it take? The only form of the check that may ask the hub."""
        from runbook.steps.common.hub.room import estimate

        reasons, work = estimate(ctx, folder, listing, self.repo_type)
        return Check.unsatisfied(why, *reasons, work=work)

    def _prove(self, ctx: Context, folder: Path, stamp: Stamp) -> Iterator[Reason]:
        """Read every byte, on all cores, and the headers of the tensors."""
        from runbook.steps.common.hub import digests
        from runbook.steps.weights import tensors

        total, done = stamp.listing.bytes, 0
        files = ((folder / entry.path, entry) for entry in stamp.listing.entries)
        for entry, found in digests.digest_many(files):
            done += entry.size
            ctx.progress(done, total, "bytes", entry.path)
            if isinstance(found, OSError):
                yield Reason("unreadable", f"{entry.path}: {found.strerror}")
            elif not digests.matches(entry, found):
                yield Reason("digest_mismatch", f"{entry.path}: {digests.wrong(entry, found)}")
        yield from tensors.problems(folder, [e.path for e in stamp.listing.entries])


def wanted(ctx: Context) -> dict[str, Any]:
    """The inputs that choose which bytes there are to be; from where they come is no matter."""
    return {
        "repo": ctx.inputs.repo,
        "revision": ctx.inputs.revision,
        "files": ctx.inputs.files,
    }


def _name(chosen: dict[str, Any]) -> str:
    return f"{chosen['repo']} at {chosen['revision'][:12]}"


def _missing(stamp: Stamp, missing: list[Entry]) -> Reason:
    if not missing:
        return Reason("unfinished", "all files are here, but were not looked at as a whole")
    count = f"{len(missing)} of {len(stamp.listing.entries)} files"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    first = missing[0].path
    if not stamp.complete:
        return Reason("unfinished", f"{count} are not here yet: {first}{more}")
    return Reason("files_changed", f"{count} are missing or were changed: {first}{more}")
