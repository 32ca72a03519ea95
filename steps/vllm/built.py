"""The wheel to install, as both ways of building give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedies
from runbook.steps.common.packages.wheel import Wheel
from runbook.steps.common.store import Store
from runbook.steps.vllm.patching.examine import SeriesConflict
from runbook.steps.vllm.patching.series import Series

NAME = "vllm"
"""The distribution that is built, whatever the name of the release: vLLM looks up its own version
under this name."""
VERSION_FILE = f"{NAME}/_version.py"


@dataclass(frozen=True, slots=True)
class Built:
    """A wheel to install. `files` are the installed paths that the series changed or made."""

    path: Path
    sha256: str
    version: str
    series: Series
    files: tuple[str, ...]


def version_of(public: str, local: str, series: Series) -> str:
    """The version of a patched build: `local` (such as `cpu.mtp`), then the digest's start. A stock
    release keeps its own."""
    return public if not series.patches else f"{public}+{local}.{series.short_digest}"


def touched(series: Series, wheel: Wheel) -> tuple[str, ...]:
    """The paths that the series names and that are in the patched wheel."""
    paths = {path for patch in series.patches for file in patch.files for path in file.paths}
    return tuple(sorted(paths & wheel.members.keys()))


def from_cache_or(
    ctx: Context, key: str, version: str, series: Series, make: Callable[[Path], Path]
) -> Built:
    """The wheel that was made under `key` before, else the one that `make` writes into the empty
    folder it is given; it is in the cache then."""
    store = Store(ctx.cache)
    with store.work(key) as staging:
        found = store.built(key)
        if found is None:
            digest, path = store.add(make(staging))
            store.note(key, digest, path.name)
        else:
            digest, path = found
            ctx.log(f"{path.name} was built before")
    with Wheel(path) as wheel:
        return Built(path, digest, version, series, touched(series, wheel))


def drifted(series: Series, conflict: SeriesConflict, source: str, remedy: Remedies) -> StepFailure:
    """The failure of a series that does not fit its source; nothing was written."""
    return StepFailure(
        f"{len(conflict.conflicts)} of {len(series.patches)} patches of {series.target} do not fit "
        f"{source}; nothing was changed",
        code="patch_conflict",
        cause=str(conflict),
        remedy=remedy,
    )
