"""conda-lock's unified lock format, version 1, as far as installing needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.protocol import StepFailure

PLATFORM = "linux-64"
ARCHIVE = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)-(?P<build>[^-]+)\.(conda|tar\.bz2)")
HEX = {"sha256": re.compile("[0-9a-f]{64}"), "md5": re.compile("[0-9a-f]{32}")}


@dataclass(frozen=True, slots=True)
class CondaPackage:
    """One package archive. `channel` is the URL of the channel without the subdir."""

    name: str
    version: str
    build: str
    subdir: str
    file_name: str
    channel: str
    sha256: str
    md5: str
    depends: tuple[str, ...]

    @property
    def url(self) -> str:
        return f"{self.channel}/{self.subdir}/{self.file_name}"

    @property
    def metadata(self) -> str:
        """The name of its record in `conda-meta` of a prefix."""
        return f"{self.name}-{self.version}-{self.build}.json"


def read_lock(path: Path, channel_alias: str | None = None) -> list[CondaPackage]:
    """The linux-64 packages of a lock, from the mirror `channel_alias` if one is given.

    Raises `StepFailure` if the file is not a lock whose packages all have a SHA-256.
    """
    import yaml

    try:
        text = path.read_text()
    except OSError as error:
        raise StepFailure(
            f"cannot read the lock {path}",
            code="lock_unreadable",
            cause=str(error),
            remedy="correct `lock`, or leave it out to use the shipped one",
        ) from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(text, loader)
        if document["version"] != 1:
            raise ValueError(f"version {document['version']} instead of 1")
        entries = [
            entry
            for entry in document["package"]
            if entry["manager"] == "conda" and entry["platform"] == PLATFORM
        ]
        packages = [_package(entry, channel_alias) for entry in entries]
        if not packages:
            raise ValueError(f"no conda packages for {PLATFORM}")
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise StepFailure(
            f"{path} is not a conda-lock file (version 1) for {PLATFORM}",
            code="lock_malformed",
            cause=f"{type(error).__name__}: {error}",
            remedy=f"write it with `conda-lock lock --platform {PLATFORM}`, or leave `lock` out",
        ) from error
    return packages


def _package(entry: Mapping[str, Any], channel_alias: str | None) -> CondaPackage:
    base, channel, subdir, file_name = entry["url"].rsplit("/", 3)
    archive = ARCHIVE.fullmatch(file_name)
    if archive is None or archive["name"] != entry["name"]:
        raise ValueError(f"{entry['url']} does not name an archive of {entry['name']}")
    for kind, pattern in HEX.items():
        if not pattern.fullmatch(str(entry["hash"].get(kind))):
            raise ValueError(f"{entry['name']} has no {kind}")
    return CondaPackage(
        name=entry["name"],
        version=archive["version"],
        build=archive["build"],
        subdir=subdir,
        file_name=file_name,
        channel=f"{(channel_alias or base).rstrip('/')}/{channel}",
        sha256=entry["hash"]["sha256"],
        md5=entry["hash"]["md5"],
        depends=tuple(
            f"{name} {constraint}".strip() for name, constraint in entry["dependencies"].items()
        ),
    )
