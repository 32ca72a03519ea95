"""Patch targets: which files a series consists of. Imported by each `check`, so kept small."""

from __future__ import annotations

from pathlib import Path

PATCHES = Path(__file__).parent / "patches"


class SeriesError(ValueError):
    """A series, or one of its patches, is not of the form that `patches/README.md` describes."""

    def __init__(self, message: str, code: str = "series_malformed") -> None:
        super().__init__(message)
        self.code = code


def targets() -> list[str]:
    """The shipped targets."""
    return sorted(path.parent.name for path in PATCHES.glob("*/series"))


def folder_of(target: str) -> Path:
    """The folder of a target: one of the shipped ones by name, else a path."""
    return Path(target).absolute() if "/" in target else PATCHES / target


def files_of(target: str) -> list[Path]:
    """`series` and the patch files it names, in order."""
    folder = folder_of(target)
    listing = folder / "series"
    try:
        text = listing.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SeriesError(
            f"there is no patch series {listing}; shipped are {', '.join(targets())}",
            code="series_missing",
        ) from None
    names = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [listing, *(folder / name for name in names if name)]
