"""conda-lock's unified lock format, version 1, as far as installing needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runbook.protocol import StepFailure
from runbook.steps.common.packages import pins
from runbook.steps.common.positions import load, position

T = TypeVar("T")

PLATFORM = "linux-64"
SUBDIRS = (PLATFORM, "noarch")
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


class _Wrong(ValueError):
    """A value of the document is not of its form; `path` leads to it."""

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.path = path


def read_lock(path: Path, channel_alias: str | None = None) -> list[CondaPackage]:
    """The linux-64 packages of a lock, from the mirror `channel_alias` if one is given.

    Raises `StepFailure` if the file is not a lock whose packages all have a SHA-256; it names the
    line and column.
    """
    import yaml

    text = pins.read_lock(path)
    try:
        return _packages(load(text), channel_alias)
    except _Wrong as wrong:
        where, what = position(text, wrong.path), str(wrong)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "line 1, column 1"
        what = error.problem or "not YAML"
    except (yaml.YAMLError, ValueError) as error:
        where, what = "line 1, column 1", str(error).splitlines()[0]
    raise StepFailure(
        f"{path} is not a conda-lock file (version 1) for {PLATFORM}",
        code="lock_malformed",
        cause=f"{where}: {what}",
        remedy=f"write it with `conda-lock lock --platform {PLATFORM}`, or leave `lock` out",
        where=f"{path}: {where}",
    )


def _packages(document: Any, channel_alias: str | None) -> list[CondaPackage]:
    version = _get(document, (), "version", int)
    if version != 1:
        raise _Wrong(("version",), f"version {version} instead of 1")
    entries = _get(document, (), "package", list)
    packages = []
    for number, entry in enumerate(entries):
        path = ("package", number)
        if _get(entry, path, "manager", str) != "conda":
            continue
        if _get(entry, path, "platform", str) == PLATFORM:
            packages.append(_package(entry, path, channel_alias))
    if not packages:
        raise _Wrong(("package",), f"no conda packages for {PLATFORM}")
    return packages


def _get(value: Any, path: Sequence[str | int], key: str, kind: type[T]) -> T:
    """The value of a key, which must be there and of its kind."""
    where = ".".join(map(str, path)) or "the document"
    if not isinstance(value, dict):
        raise _Wrong(path, f"{where} must be keys and values, not {_kind(value)}")
    if key not in value:
        raise _Wrong(path, f"{where} has no `{key}`")
    found = value[key]
    if not isinstance(found, kind) or isinstance(found, bool):
        raise _Wrong([*path, key], f"`{key}` must be {_NAMES[kind]}, not {_kind(found)}")
    return found


_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    dict: "keys and values",
}


def _kind(value: Any) -> str:
    return "nothing" if value is None else _NAMES.get(type(value), type(value).__name__)


def _package(entry: Any, path: Sequence[str | int], channel_alias: str | None) -> CondaPackage:
    name, url = _get(entry, path, "name", str), _get(entry, path, "url", str)
    parts = url.rsplit("/", 3)
    archive = ARCHIVE.fullmatch(parts[-1])
    if len(parts) != 4 or archive is None or archive["name"] != name or not url.isprintable():
        raise _Wrong([*path, "url"], f"{url!r:.200} does not name an archive of {name!r:.80}")
    base, channel, subdir, file_name = parts
    if subdir not in SUBDIRS:
        raise _Wrong([*path, "url"], f"{subdir!r:.80} is none of {', '.join(SUBDIRS)}")
    digests = _get(entry, path, "hash", dict)
    for kind, pattern in HEX.items():
        digest = _get(digests, [*path, "hash"], kind, str)
        if not pattern.fullmatch(digest):
            raise _Wrong([*path, "hash", kind], f"{digest!r:.80} is no {kind} in hexadecimal")
    depends = _get(entry, path, "dependencies", dict)
    for dependency, constraint in depends.items():
        if not isinstance(dependency, str) or not isinstance(constraint, str):
            raise _Wrong([*path, "dependencies"], "`dependencies` must be texts by name")
    return CondaPackage(
        name=name,
        version=archive["version"],
        build=archive["build"],
        subdir=subdir,
        file_name=file_name,
        channel=f"{(channel_alias or base).rstrip('/')}/{channel}",
        sha256=digests["sha256"],
        md5=digests["md5"],
        depends=tuple(f"{name} {constraint}".strip() for name, constraint in depends.items()),
    )
