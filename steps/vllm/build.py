"""The patched wheel: from the cache if the same was built before, else built into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.steps.common.store import Store, key_of
from runbook.steps.vllm import wheel as wheels
from runbook.steps.vllm.release import Release
from runbook.steps.vllm.series import (
    Series,
    SeriesConflict,
    load,
    patched,
)
from runbook.steps.vllm.wheel import Wheel, WheelError, WheelName

NAME = "vllm"
"""The distribution that is built, whatever the name of the release: vLLM looks up its own version
under this name."""
VERSION_FILE = "vllm/_version.py"


@dataclass(frozen=True, slots=True)
class Built:
    """A patched wheel. `files` are the installed paths that the series changed or made."""

    path: Path
    sha256: str
    version: str
    series: Series
    files: tuple[str, ...]


def build(ctx: Context, release: Release) -> Built:
    if ctx.inputs.mode == "source":
        from runbook.steps.vllm.source import build_source

        return build_source(ctx, release)
    return build_wheel(ctx, release)


def version_of(public: str, local: str, series: Series) -> str:
    """The version of a patched build: `local` (such as `cpu.mtp`), then the digest's start."""
    return f"{public}+{local}.{series.short_digest}"


def build_wheel(ctx: Context, release: Release) -> Built:
    """Patch the published wheel. Only Python sources change, so nothing is compiled."""
    series = load(ctx.inputs.target)
    store = Store(ctx.cache)
    version = version_of(release.version, release.local, series)
    base_sha256 = release.wheel().sha256
    key = key_of(
        {
            "recipe": wheels.RECIPE,
            "base": base_sha256,
            "patches": series.digest,
            "version": version,
            "drop_requirements": sorted(release.drop_requirements),
        }
    )
    with store.work(key) as staging:
        found = store.built(key)
        if found is None:
            base = base_wheel(ctx, store, release)
            path = _repack(ctx, base, staging, series, version, release)
            digest, path = store.add(path)
            store.note(key, digest, path.name)
        else:
            digest, path = found
            ctx.log(f"{path.name} was built before")
    with Wheel(path) as wheel:
        files = touched(series, wheel)
    return Built(path, digest, version, series, files)


def touched(series: Series, wheel: Wheel) -> tuple[str, ...]:
    """The paths that the series names and that are in the patched wheel."""
    paths = {path for patch in series.patches for file in patch.files for path in file.paths}
    return tuple(sorted(paths & wheel.members.keys()))


def base_wheel(ctx: Context, store: Store, release: Release) -> Path:
    """The published wheel: from the cache, else downloaded with pip as it is configured."""
    from runbook.steps.common.pip import pip_command
    from runbook.steps.common.pip.wheels import Wheel as Pin

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
                remedy="make lock",
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
            changes[VERSION_FILE] = wheels.edit_version(stated, version)
            out = staging / str(name)
            ctx.log(f"patch {base.name}: {len(series.patches)} patches, {len(changes)} files")
            with out.open("wb") as file:
                wheels.repack(
                    source,
                    file,
                    name=name,
                    changes=changes,
                    drop_requirements=release.drop_requirements,
                )
        return out
    except SeriesConflict as conflict:
        raise drifted(series, conflict, base.name) from conflict
    except WheelError as error:
        raise StepFailure(
            f"{base.name} cannot be repacked",
            code="wheel_malformed",
            cause=str(error),
            remedy="use another release of vLLM",
        ) from error


def drifted(series: Series, conflict: SeriesConflict, source: str) -> StepFailure:
    """The failure of a series that does not fit its source."""
    return StepFailure(
        f"{len(conflict.conflicts)} of {len(series.patches)} patches of {series.target} do not fit "
        f"{source}; nothing was changed",
        code="patch_conflict",
        cause=str(conflict),
        remedy=f"runbook patches {series.target}",
    )
