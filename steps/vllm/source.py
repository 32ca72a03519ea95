"""Compile a pinned, patched source.

```
<workspace>/build.<key>/src     unpacked and patched; compiled in place, so a next run goes on
<workspace>/build.<key>/venv    the build requirements, by hash
```
The folder goes when the wheel is in the cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.packages import uv_command
from runbook.steps.common.packages.wheel import Wheel, WheelError, WheelName
from runbook.steps.common.store import Store, key_of, sha256_file
from runbook.steps.common.vllm_release import Release
from runbook.steps.vllm import environment
from runbook.steps.vllm import repack as repacking
from runbook.steps.vllm.archive import obtain, unpack
from runbook.steps.vllm.built import (
    NAME,
    VERSION_FILE,
    Built,
    drifted,
    from_cache_or,
    version_of,
)
from runbook.steps.vllm.compile import compile_wheel
from runbook.steps.vllm.metadata import edit_version
from runbook.steps.vllm.patching.examine import SeriesConflict, patched
from runbook.steps.vllm.patching.series import Series, load_or_stock

RECIPE = "1"


def build_source(ctx: Context, release: Release) -> Built:
    source: dict[str, Any] = ctx.inputs.source
    series = load_or_stock(ctx.inputs.series)
    series.require_release(source["version"])
    python = release.python(ctx.inputs.python)
    version = version_of(source["version"], release.local, series)
    key = key_of(
        {
            "recipe": [RECIPE, repacking.RECIPE],
            "archive": source["archive_sha256"],
            "patches": series.digest,
            "version": version,
            "python": python,
            "build_requirements": sha256_file(release.need_build_requirements()),
            "drop_requirements": sorted(release.drop_requirements),
            "arch_list": source["arch_list"],
            "cuda": source["cuda_version"],
            # The toolkit's place is not what it is: another workspace may use the same wheel.
            "env": {
                name: value.replace(str(ctx.workspace), "<workspace>")
                for name, value in source["env"].items()
            },
        }
    )

    def make(staging: Path) -> Path:
        folder = ctx.workspace / f"build.{key[:8]}"
        prepare(ctx, release, series, folder, python)
        compiled = compile_wheel(ctx, folder, staging)
        return _normalise(compiled, staging / "final", version, release)

    built = from_cache_or(ctx, key, version, series, make)
    for folder in build_folders(ctx.workspace):
        shutil.rmtree(folder)
    return built


def build_folders(workspace: Path) -> list[Path]:
    return sorted(path for path in workspace.glob(f"build.{environment.DIGEST}") if path.is_dir())


def prepare(ctx: Context, release: Release, series: Series, folder: Path, python: str) -> None:
    """The patched source and the environment to build it in; each appears when it is whole."""
    source: dict[str, Any] = ctx.inputs.source
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "src"
    if not tree.exists():
        location = source["archive"].replace("{commit}", source["commit"])
        archive = obtain(ctx, Store(ctx.cache, "archives"), location, source["archive_sha256"])
        new = folder / "src.new"
        shutil.rmtree(new, ignore_errors=True)
        unpack(archive, source["commit"], new)
        apply_series(series, new, source["version"], archive.name)
        new.replace(tree)
    venv = folder / "venv"
    complete = venv / "complete"
    if not complete.exists():
        environment.create(ctx, venv, python)
        uv_command.uv(
            ctx,
            *("pip", "install", "--python", venv / "bin" / "python", "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:"),
            *("--requirement", release.need_build_requirements()),
            what="the build requirements",
        )
        complete.touch()


def apply_series(series: Series, tree: Path, version: str, name: str) -> None:
    """Write the changes of a series into an unpacked source that nothing else uses yet."""

    def read(path: str) -> bytes | None:
        file = tree / path
        return file.read_bytes() if file.is_file() else None

    try:
        changes = patched(series, read, version)
    except SeriesConflict as conflict:
        remedy = Remedy(
            "run",
            text="pin the commit that the series was made for, or correct the series, then "
            "{command}",
        )
        raise drifted(series, conflict, name, remedy) from conflict
    for path, data in changes.items():
        file = tree / path
        if data is None:
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def _normalise(compiled: Path, folder: Path, version: str, release: Release) -> Path:
    """The compiled wheel under its final name and version, with timestamps that repeat."""
    folder.mkdir()
    try:
        with Wheel(compiled) as source:
            changes: dict[str, bytes | None] = {}
            if (stated := source.read(VERSION_FILE)) is not None:
                changes[VERSION_FILE] = edit_version(stated, version)
            path = folder / str(WheelName(NAME, version, source.name.tag))
            with path.open("wb") as file:
                repacking.repack(
                    source,
                    file,
                    name=WheelName(NAME, version, source.name.tag),
                    changes=changes,
                    drop_requirements=release.drop_requirements,
                )
        return path
    except WheelError as error:
        raise StepFailure(
            f"the build gave a wheel that cannot be used: {compiled.name}",
            code="wheel_malformed",
            cause=str(error),
            remedy=Remedy("logs", ("{step}",)),
        ) from error
