"""vLLM from its published wheel, patched or as it is."""

from __future__ import annotations

from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.packages.wheel import Wheel, WheelError, WheelName
from runbook.steps.common.store import Store, key_of
from runbook.steps.common.vllm_release import Release
from runbook.steps.vllm import repack as repacking
from runbook.steps.vllm.built import NAME, VERSION_FILE, Built, drifted, from_cache_or, version_of
from runbook.steps.vllm.metadata import edit_version
from runbook.steps.vllm.patching.examine import SeriesConflict, patched
from runbook.steps.vllm.patching.series import Series, load_or_stock


def build_wheel(ctx: Context, release: Release) -> Built:
    """Patch the published wheel; only Python sources change, so nothing is compiled. A stock
    release is the published wheel itself, unless the lock renames it or drops requirements: then
    its metadata change and nothing else."""
    series = load_or_stock(ctx.inputs.series)
    series.require_release(release.version)
    if not series.patches and release.distribution == NAME and not release.drop_requirements:
        path = base_wheel(ctx, Store(ctx.cache), release)
        return Built(path, release.wheel().sha256, release.version, series, ())
    version = version_of(release.version, release.local, series)
    key = key_of(
        {
            "recipe": repacking.RECIPE,
            "base": release.wheel().sha256,
            "patches": series.digest,
            "version": version,
            "drop_requirements": sorted(release.drop_requirements),
        }
    )

    def make(staging: Path) -> Path:
        base = base_wheel(ctx, Store(ctx.cache), release)
        return _repack(ctx, base, staging, series, version, release)

    return from_cache_or(ctx, key, version, series, make)


def base_wheel(ctx: Context, store: Store, release: Release) -> Path:
    """The published wheel: from the cache, else downloaded with pip as it is configured."""
    from runbook.steps.common.packages import pip_command
    from runbook.steps.common.packages.pins import Pin

    locked = release.wheel()
    if (found := store.find(locked.sha256)) is not None:
        return found
    with store.work(locked.sha256) as staging:
        if (found := store.find(locked.sha256)) is not None:
            return found
        pin = Pin(release.distribution, release.version, locked.sha256, locked.bytes)
        pip_command.download(ctx, [pin], staging)
        path = next(iter(staging.rglob(locked.file)), None)
        if path is None:
            raise StepFailure(
                f"pip did not download {locked.file}",
                code="download_unexpected",
                cause=", ".join(found.name for found in staging.rglob("*.whl")) or "no wheel",
                remedy="write the lock anew (`make lock` in the repository of runbook)",
            )
        return store.add(path)[1]


def _repack(
    ctx: Context, base: Path, staging: Path, series: Series, version: str, release: Release
) -> Path:
    try:
        with Wheel(base) as source:
            changes = dict(patched(series, source.read, release.version))
            name = WheelName(NAME, version, source.name.tag)
            stated = changes.get(VERSION_FILE) or source.need(VERSION_FILE)
            changes[VERSION_FILE] = edit_version(stated, version)
            out = staging / str(name)
            if series.patches:
                ctx.log(f"patch {base.name}: {len(series.patches)} patches, {len(changes)} files")
            else:
                ctx.log(f"{base.name} as published, with the name and requirements of its lock")
            with out.open("wb") as file:
                repacking.repack(
                    source,
                    file,
                    name=name,
                    changes=changes,
                    drop_requirements=release.drop_requirements,
                )
        return out
    except SeriesConflict as conflict:
        mend = Remedy(
            "run",
            text=f"restore or correct what the cause names in {series.folder}, or lock the release "
            "that it fits, then {command}",
        )
        examine = Remedy(
            "patches",
            (str(series.folder), "--lock", str(release.path)),
            text="{command} shows each patch",
        )
        raise drifted(series, conflict, base.name, (mend, examine)) from conflict
    except WheelError as error:
        raise StepFailure(
            f"{base.name} cannot be repacked",
            code="wheel_malformed",
            cause=str(error),
            remedy="use another release of vLLM",
        ) from error
