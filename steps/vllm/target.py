"""Where patch series lie. Imported by each `check`, so kept small."""

from __future__ import annotations

from pathlib import Path

from runbook.protocol import StepFailure
from runbook.remedy import Remedy

PATCHES = Path(__file__).parent / "patches"
LISTING = "series.yaml"
PATTERN = "*.patch"


class SeriesError(ValueError):
    """A series, or one of its patches, is not of the form that `patches/README.md` describes."""

    def __init__(self, message: str, code: str = "series_malformed") -> None:
        super().__init__(message)
        self.code = code


def targets() -> list[str]:
    """The shipped targets."""
    return sorted(path.parent.name for path in PATCHES.glob(f"*/{LISTING}"))


def folder_of(target: str) -> Path:
    """The folder of a target: one of the shipped ones by name, else a path."""
    path = "/" in target or target in (".", "..")
    return Path(target).absolute() if path else PATCHES / target


def files_of(target: str) -> list[Path]:
    """`series.yaml` and the patch files beside it, by name. Raises `SeriesError` if there is no
    `series.yaml`; whether the two agree is looked at when the series is read."""
    folder = folder_of(target)
    listing = folder / LISTING
    try:
        there = "\0" not in target and listing.is_file()
    except OSError:  # a name too long, links in a circle, a folder that may not be entered
        there = False
    if not there:
        raise SeriesError(
            f"there is no patch series {str(listing)!r}; shipped are {', '.join(targets())}",
            code="series_missing",
        )
    return [listing, *sorted(path for path in folder.glob(PATTERN) if path.is_file())]


_REMEDIES: dict[str, str | Remedy] = {
    "series_missing": Remedy(
        "patches", text="name a shipped target ({command} lists them), or the path of your own"
    ),
    "release_not_supported": "name the series of this release, or a release of the series' own; "
    "or, once the series was proven on this release, add it to `releases` in series.yaml",
    "series_without_effect": "leave `series` out: the release needs no patch",
    "series_malformed": "correct the series; steps/vllm/patches/README.md describes its form",
}


def series_failure(error: SeriesError) -> StepFailure:
    """A faulty series as the failure of a step, or of a verb."""
    return StepFailure(str(error), code=error.code, remedy=_REMEDIES[error.code])
