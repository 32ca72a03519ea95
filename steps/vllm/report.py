"""The table of a patch series, as data."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runbook.steps.common.packages.wheel import Wheel
from runbook.steps.common.store import Store
from runbook.steps.common.vllm_release import Release, load_release, lock_path
from runbook.steps.vllm.built import NAME
from runbook.steps.vllm.patching.examine import Finding, examine
from runbook.steps.vllm.patching.patch import Patch, Read
from runbook.steps.vllm.patching.series import Series, load
from runbook.steps.vllm.target import SeriesError, series_failure


def patches(
    target: str,
    *,
    lock: str | None = None,
    workspace: Path | None = None,
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """One entry for each patch of a target, in the order they apply.

    `state` is that in the environment of `workspace` if it was made from this target's release,
    else that in the published wheel if the cache has it, else None (`source` says which, with
    the version); None also for a patch of sources that are compiled. `lock` is the step's input
    of that name. `files` has the SHA-256 of each touched file before and after; while the source
    is unknown both are None. Raises `StepFailure` for a target that is unknown or malformed.
    """
    try:
        series = load(target)
    except SeriesError as error:
        raise series_failure(error) from error
    path = lock_path(series.releases[0], lock)
    release = load_release(path) if path.exists() or lock is not None else None
    if release is not None:
        _require_release(series, release)
    found = None
    if release is not None and workspace is not None:
        found = _installed(series, release, workspace)
    if found is None and release is not None and cache is not None:
        found = _published(series, release, cache)
    if found is None:
        return [_entry(patch, None, None) for patch in series.patches]
    source, findings = found
    return [_entry(patch, findings.get(patch.id), source) for patch in series.patches]


def _require_release(series: Series, release: Release) -> None:
    try:
        series.require_release(release.version)
    except SeriesError as error:
        raise series_failure(error) from error


def _installed(
    series: Series, release: Release, workspace: Path
) -> tuple[str, dict[str, Finding]] | None:
    from runbook.steps.vllm import environment

    folder = workspace / environment.LINK
    stamp = environment.read_stamp(folder)
    if stamp is None:
        return None
    version = str(stamp.made["version"])
    if version.partition("+")[0] != release.version.partition("+")[0]:
        return None
    site = environment.site_packages(folder)
    return f"{NAME} {version} in {folder}", _examine(series, _reader(site), version)


def _published(
    series: Series, release: Release, cache: Path
) -> tuple[str, dict[str, Finding]] | None:
    path = Store(cache).find(release.wheel().sha256)
    if path is None:
        return None
    with Wheel(path) as wheel:
        return path.name, _examine(series, wheel.read, release.version)


def _examine(series: Series, read: Read, version: str) -> dict[str, Finding]:
    """The findings by id, without patches of files that no wheel has (C++ and CUDA sources)."""
    python = [
        patch
        for patch in series.patches
        if all(path.startswith(f"{NAME}/") for file in patch.files for path in file.paths)
    ]
    found = examine(replace(series, patches=tuple(python)), read, version)
    return {finding.patch.id: finding for finding in found.findings}


def _reader(root: Path) -> Read:
    def read(path: str) -> bytes | None:
        file = root / path
        return file.read_bytes() if file.is_file() else None

    return read


def _entry(patch: Patch, finding: Finding | None, source: str | None) -> dict[str, Any]:
    touched = (
        [asdict(file) for file in finding.files]
        if finding is not None and finding.files
        else [
            {"path": path, "before": None, "after": None}
            for file in patch.files
            for path in file.paths
        ]
    )
    conflict = finding.conflict if finding is not None else None
    return {
        "id": patch.id,
        "title": patch.title,
        "state": None if finding is None else finding.state,
        "conflict": None if conflict is None else str(conflict),
        "reason": "" if finding is None else finding.reason,
        "source": source,
        "why": patch.why,
        "symptom": patch.symptom,
        "upstream": patch.upstream,
        "version": patch.version,
        "file": patch.name,
        "digest": patch.digest,
        "files": touched,
    }
