"""A patch series: the releases it is for and its patches, from a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.steps.vllm.patching.parser import DiffError
from runbook.steps.vllm.patching.patch import UNKNOWN, Patch, need_keys, read_patch
from runbook.steps.vllm.target import LISTING, PATCHES, SeriesError, files_of, folder_of

DIGEST_LENGTH = 8
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\.patch")
_QUIRK = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Series:
    """`releases` are the releases of vLLM that the patches were made for, such as 0.33.0 or, of
    the CPU flavour, 0.32.0-cpu; `lifts` names, by patch id, the quirks that end with the patch."""

    target: str
    folder: Path
    releases: tuple[str, ...]
    patches: tuple[Patch, ...]
    lifts: dict[str, tuple[str, ...]]
    digest: str

    @property
    def short_digest(self) -> str:
        return short(self.digest)

    def require_release(self, version: str) -> None:
        """Raises `SeriesError` for a version that is of none of the series' releases; a stock
        release may be any."""
        if not self.patches:
            return
        from packaging.version import InvalidVersion, Version

        try:
            public = Version(Version(version).public)
        except InvalidVersion as error:
            raise SeriesError(f"{version!r} is no version: {error}") from error
        if all(Version(public_version(release)) != public for release in self.releases):
            raise SeriesError(
                f"the series {self.target} is for vLLM {', '.join(self.releases)}, not {version}",
                code="release_not_supported",
            )


def public_version(release: str) -> str:
    """The version of a release, without its flavour."""
    return release.partition("-")[0]


def short(digest: str) -> str:
    """The first eight digits, or as many more as it takes to hold a letter: PEP 440 would read a
    segment of digits alone as a number and drop its leading zeros."""
    for length in range(DIGEST_LENGTH, len(digest)):
        if not digest[:length].isdecimal():
            return digest[:length]
    return digest


STOCK = Series("", PATCHES, (), (), {}, hashlib.sha256().hexdigest())
"""What a release without a patch has for a series."""


def load_or_stock(name: str) -> Series:
    """The series of that name, of a stock release if it is empty; raises `SeriesError`."""
    return load(name) if name else STOCK


def load(target: str) -> Series:
    """Read a series; raises `SeriesError`."""
    listing, *present = files_of(target)
    try:
        releases, entries = _read_listing(listing)
    except (OSError, ValueError) as error:
        raise SeriesError(f"{listing}: {error}") from error
    _compare(target, [name for name, _ in entries], [path.name for path in present])
    patches = [_read(listing.parent / name) for name, _ in entries]
    _check(target, releases, patches)
    digest = hashlib.sha256("".join(patch.digest for patch in patches).encode()).hexdigest()
    lifts = {patch.id: lifted for patch, (_, lifted) in zip(patches, entries, strict=True)}
    return Series(listing.parent.name, listing.parent, releases, tuple(patches), lifts, digest)


def _read_listing(path: Path) -> tuple[tuple[str, ...], list[tuple[str, tuple[str, ...]]]]:
    """The releases, and the name of each patch file with the quirks it lifts. Raises ValueError."""
    import yaml
    from packaging.version import InvalidVersion, Version

    try:
        data = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error
    need_keys(data, {"releases", "patches"}, "a series")
    releases = _texts(data["releases"], "releases")
    if not releases:
        raise ValueError("releases: at least one is needed")
    for release in releases:
        try:
            Version(public_version(release))
        except InvalidVersion as error:
            raise ValueError(f"releases: {error}") from error
    if not isinstance(data["patches"], list) or not data["patches"]:
        raise ValueError("patches: expected a list with at least one entry")
    return releases, [_entry(entry) for entry in data["patches"]]


def _entry(entry: Any) -> tuple[str, tuple[str, ...]]:
    need_keys(entry, {"file"}, "patches", {"lifts"})
    name = entry["file"]
    if not isinstance(name, str) or _FILE_NAME.fullmatch(name) is None:
        raise ValueError(f"patches: {name!r} is not the name of a patch file in this folder")
    lifts = _texts(entry.get("lifts", []), f"patches: {name}: lifts")
    for quirk in lifts:
        if _QUIRK.fullmatch(quirk) is None:
            raise ValueError(f"patches: {name}: {quirk!r} is not the name of a quirk")
    return name, lifts


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: expected a list of texts")
    return tuple(value)


def _compare(target: str, named: list[str], present: list[str]) -> None:
    for name in named:
        if named.count(name) > 1:
            raise SeriesError(f"the series {target} names {name} more than once")
        if name not in present:
            raise SeriesError(f"the series {target} names {name}, which is absent")
    if unnamed := [name for name in present if name not in named]:
        raise SeriesError(f"the series {target} does not name {', '.join(unnamed)}, which is there")


def _read(path: Path) -> Patch:
    try:
        return read_patch(path)
    except (OSError, ValueError, DiffError) as error:
        raise SeriesError(f"{path}: {error}") from error


def _check(target: str, releases: Iterable[str], patches: list[Patch]) -> None:
    ids = [patch.id for patch in patches]
    for patch in patches:
        if ids.count(patch.id) > 1:
            raise SeriesError(f"{folder_of(target)}: the id {patch.id} is used more than once")
        concerned = [patch.concerns(public_version(release)) for release in releases]
        if not any(concerned):
            raise SeriesError(
                f"{patch.name} is for {patch.version}, which is none of the releases in {LISTING}"
            )
        if (patch.unless or not all(concerned)) and patch.upstream.startswith(UNKNOWN):
            raise SeriesError(
                f"{patch.name} says where it is not needed, so `upstream` must name the change "
                "that made it so"
            )
