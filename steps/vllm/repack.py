"""Wheels, repacked with changed members under a new name and version.

The CPU release holds 436 MB of extension libraries that no patch touches, so members that do not
change keep their deflate stream: nothing is inflated, nothing is compressed again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Collection, Mapping
from typing import IO

from runbook.steps.common.packages.record import record_hash
from runbook.steps.common.packages.wheel import Wheel, WheelError, WheelName
from runbook.steps.vllm.metadata import edit_metadata, edit_wheel

RECIPE = "1"
"""Part of the key of a built wheel: change it when `repack` makes other bytes of the same input."""

_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_LOCAL_SIGNATURE = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_BLOCK = 1 << 20


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
                row = record[path]
                rows.append((new_path, row.digest, "" if row.size is None else str(row.size)))
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
