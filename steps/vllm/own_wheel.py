"""The wheel that plain package indexes lack (PyTorch for CPUs), from its publisher's own."""

from __future__ import annotations

from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.steps.common.packages import pip_command
from runbook.steps.common.packages.offers import Source, source_of
from runbook.steps.common.packages.pins import Pin
from runbook.steps.common.store import Store
from runbook.steps.common.vllm_release import Release


def folder_with_it(ctx: Context, release: Release, python: str) -> Path | None:
    """A folder for uv to look into, with the wheel; None where the configured indexes have it, or
    there is none to be had beside them. Raises what `source_of` raises."""
    if release.own_index is None or (wheel := release.own_index.wheel(python)) is None:
        return None
    store = Store(ctx.cache)
    if (kept := store.find(wheel.sha256)) is not None:
        return kept.parent
    source = source_of(release.own_index, python)
    if source is None:
        return None
    ctx.log(str(source))
    return _download(ctx, store, source, python).parent if source.index else None


def _download(ctx: Context, store: Store, source: Source, python: str) -> Path:
    wheel = source.wheel
    with store.work(wheel.sha256) as staging:
        if (found := store.find(wheel.sha256)) is not None:
            return found
        pip_command.download(
            ctx,
            [Pin(wheel.name, wheel.version, wheel.sha256, 0)],
            staging,
            f"--extra-index-url={source.index}",
            f"--python-version={python}",
            f"--platform={wheel.platform}",
        )
        store.adopt(staging, {wheel.sha256})
        if (found := store.find(wheel.sha256)) is None:
            raise StepFailure(
                f"pip did not download {wheel.file}",
                code="download_unexpected",
                cause=", ".join(path.name for path in staging.rglob("*.whl")) or "no wheel",
                remedy="write the lock anew (`make lock` in the repository of runbook)",
            )
        return found
