"""Wheels: read by member, and repacked with changed members under a new name and version.

The CPU release holds 436 MB of extension libraries that no patch touches, so members that do not
change keep their deflate stream: nothing is inflated, nothing is compressed again. The format:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

RECIPE = "1"
"""Part of the key of a built wheel: change it when `repack` makes other bytes of the same input."""

_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_LOCAL_SIGNATURE = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BLOCK = 1 << 20


class WheelError(ValueError):
    """A wheel is not of the form that the specification describes, or its RECORD is wrong."""


@dataclass(frozen=True, slots=True)
class WheelName:
    """The parts of a wheel's file name; `distribution` as it is spelled there."""

    distribution: str
    version: str
    tag: str

    @classmethod
    def parse(cls, file_name: str) -> WheelName:
        match = re.fullmatch(r"([^-]+)-([^-]+)(?:-\d[^-]*)?-([^-]+-[^-]+-[^-]+)\.whl", file_name)
        if match is None:
            raise WheelError(f"{file_name} is not the file name of a wheel")
        return cls(match[1], match[2], match[3])

    @property
    def stem(self) -> str:
        """How the wheel's `.dist-info` and `.data` folders start."""
        return f"{self.distribution}-{self.version}"

    def __str__(self) -> str:
        return f"{self.stem}-{self.tag}.whl"


class Wheel:
    """A wheel opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = WheelName.parse(path.name)
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise WheelError(f"{path.name}: {error}") from error
        self.members = {info.filename: info for info in self._zip.infolist()}

    def __enter__(self) -> Wheel:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def dist_info(self) -> str:
        return f"{self.name.stem}.dist-info"

    def read(self, path: str) -> bytes | None:
        return self._zip.read(path) if path in self.members else None

    def need(self, path: str) -> bytes:
        """The content of a member that has to be there."""
        data = self.read(path)
        if data is None:
            raise WheelError(f"{self.path.name} has no {path}")
        return data

    def open(self, path: str) -> IO[bytes]:
        return self._zip.open(path)

    def record(self) -> dict[str, tuple[str, str]]:
        """RECORD: path to hash (`sha256=...`, empty for itself) and size in bytes, as written."""
        return parse_record(self.need(f"{self.dist_info}/RECORD"))


def parse_record(data: bytes) -> dict[str, tuple[str, str]]:
    rows = csv.reader(io.StringIO(data.decode()))
    try:
        return {path: (digest, size) for path, digest, size in rows}
    except ValueError as error:
        raise WheelError("RECORD has a row that is not path, hash, size") from error


def record_hash(digest: bytes) -> str:
    """A SHA-256 digest as RECORD spells it."""
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def faults(
    record: Mapping[str, tuple[str, str]], open_member: Callable[[str], IO[bytes]]
) -> Iterator[str]:
    """What in RECORD is not so: a missing file, or one with another hash. Reads every file."""
    for path, (wanted, _) in record.items():
        if not wanted:
            continue
        digest = hashlib.sha256()
        try:
            with open_member(path) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except (FileNotFoundError, KeyError):
            yield f"{path} is missing"
            continue
        if record_hash(digest.digest()) != wanted:
            yield f"{path} differs from its hash in RECORD"


def repack(
    source: Wheel,
    out: IO[bytes],
    *,
    name: WheelName,
    changes: Mapping[str, bytes | None],
    drop_requirements: Collection[str] = (),
) -> None:
    """Write `source` with `changes` (path to content, None to leave it out) as the wheel `name`.

    The metadata follow the name, also the `Tag` in WHEEL, which installers trust over the file
    name and which the CPU release has wrong. The same input gives the same bytes: members keep
    their order, new ones follow in theirs, and all bear one timestamp.
    """
    info, old_info = f"{name.stem}.dist-info", source.dist_info
    record_path = f"{info}/RECORD"
    edited = dict(changes)
    metadata, tags = (source.need(f"{old_info}/{file}") for file in ("METADATA", "WHEEL"))
    edited[f"{old_info}/METADATA"] = edit_metadata(metadata, name, drop_requirements)
    edited[f"{old_info}/WHEEL"] = edit_wheel(tags, name.tag)
    record = source.record()
    rows: list[tuple[str, str, str]] = []
    writer = _Writer(out)

    with source.path.open("rb") as raw:
        for path, member in source.members.items():
            if member.is_dir() or path == f"{old_info}/RECORD":
                continue
            new_path = _renamed(path, source.name.stem, name.stem)
            if path not in edited:
                if path not in record:
                    raise WheelError(f"{source.path.name}: {path} is not in RECORD")
                rows.append((new_path, *record[path]))
                writer.copy(raw, member, new_path)
                continue
            data = edited.pop(path)
            if data is not None:
                rows.append(_row(new_path, data))
                writer.add(new_path, data, member.external_attr)
        for path in sorted(edited):
            data = edited[path]
            if data is not None:
                rows.append(_row(path, data))
                writer.add(path, data)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*rows, (record_path, "", "")])
    writer.add(record_path, text.getvalue().encode())
    writer.close()


def _renamed(path: str, old_stem: str, new_stem: str) -> str:
    for suffix in (".dist-info/", ".data/"):
        if path.startswith(old_stem + suffix):
            return new_stem + path.removeprefix(old_stem)
    return path


def _row(path: str, data: bytes) -> tuple[str, str, str]:
    return path, record_hash(hashlib.sha256(data).digest()), str(len(data))


def edit_metadata(data: bytes, name: WheelName, drop_requirements: Collection[str]) -> bytes:
    """METADATA with the new name and version, and without the requirements named. Only the
    headers are edited: the description may quote such lines."""
    headers, blank, body = data.decode().partition("\n\n")
    dropped = {normal_name(requirement) for requirement in drop_requirements}
    lines = []
    for line in headers.split("\n"):
        key, _, value = line.partition(":")
        value = value.strip()
        if key == "Name":
            line = f"Name: {name.distribution.replace('_', '-')}"
        elif key == "Version":
            line = f"Version: {name.version}"
        elif key == "Requires-Dist":
            requirement = re.match(r"[A-Za-z0-9._-]+", value)
            if requirement is not None and normal_name(requirement[0]) in dropped:
                continue
        lines.append(line)
    return ("\n".join(lines) + blank + body).encode()


def edit_wheel(data: bytes, tag: str) -> bytes:
    """WHEEL with the tags of the file name, expanded as the specification asks."""
    lines = [line for line in data.decode().splitlines() if line and not line.startswith("Tag:")]
    pythons, abis, platforms = (part.split(".") for part in tag.split("-"))
    lines += [f"Tag: {p}-{a}-{q}" for p in pythons for a in abis for q in platforms]
    return ("\n".join(lines) + "\n").encode()


def edit_version(data: bytes, version: str) -> bytes:
    """vLLM's `_version.py`, as setuptools-scm writes it, with another version.

    Raises `WheelError` if it is of another form.
    """
    public, _, local = version.partition("+")
    parts = [int(part) if part.isdecimal() else part for part in public.split(".")]
    whole = tuple([*parts, local] if local else parts)
    text = data.decode()
    for names, value in (
        (r"(?:__version__ = version|version = __version__)", version),
        (r"(?:__version_tuple__ = version_tuple|version_tuple = __version_tuple__)", whole),
    ):
        text, count = re.subn(
            rf"^({names} = ).*$",
            lambda match, value=value: match[1] + repr(value),  # type: ignore[misc]
            text,
            flags=re.MULTILINE,
        )
        if count != 1:
            raise WheelError(f"_version.py has {count} lines that assign {names}, expected one")
    return text.encode()


def normal_name(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class _Writer:
    """Writes a zip archive, copying members of another one as they are compressed there."""

    def __init__(self, out: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6)

    def add(self, path: str, data: bytes, external_attr: int = 0o100644 << 16) -> None:
        self._zip.writestr(_info(path, external_attr), data, zipfile.ZIP_DEFLATED)

    def copy(self, raw: IO[bytes], member: zipfile.ZipInfo, path: str) -> None:
        """`raw` is the other archive's file; `member` is its entry of it."""
        if member.flag_bits & 0x1:
            raise WheelError(f"{member.filename} is encrypted")
        raw.seek(member.header_offset)
        header = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
        if header[0] != _LOCAL_SIGNATURE:
            raise WheelError(f"the entry of {member.filename} is damaged")
        raw.seek(header[-2] + header[-1], os.SEEK_CUR)
        info = _info(path, member.external_attr)
        info.compress_type = member.compress_type
        info.CRC = member.CRC
        info.compress_size = member.compress_size
        info.file_size = member.file_size
        # zipfile has no call for data that are compressed already: write the entry as its own
        # `open(..., "w")` does, and note it for the central directory.
        target = self._zip.fp
        assert target is not None
        target.seek(self._zip.start_dir)
        info.header_offset = target.tell()
        target.write(info.FileHeader())
        left = member.compress_size
        while left:
            block = raw.read(min(left, _BLOCK))
            if not block:
                raise WheelError(f"{member.filename} is cut short")
            target.write(block)
            left -= len(block)
        self._zip.filelist.append(info)
        self._zip.NameToInfo[info.filename] = info
        self._zip.start_dir = target.tell()
        self._zip._didModify = True  # type: ignore[attr-defined]

    def close(self) -> None:
        self._zip.close()


def _info(path: str, external_attr: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, _TIMESTAMP)
    info.external_attr = external_attr
    info.create_system = 3
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
