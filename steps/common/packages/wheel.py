"""Wheels, read by member. The format:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runbook.steps.common.packages.record import RecordError, Row, outside, parse_record


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
    """A wheel opened for reading. Raises `WheelError` for a file that is none, or one with
    members that would lie outside the folder it is unpacked into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = WheelName.parse(path.name)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise WheelError(f"{path.name}: {error}") from error
        self.members = {info.filename: info for info in self._zip.infolist()}
        for name in self.members:
            if outside(name.removesuffix("/")):
                self._zip.close()
                raise WheelError(f"{path.name} has a member {name!r}, outside its tree")

    def __enter__(self) -> Wheel:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def dist_info(self) -> str:
        return f"{self.name.stem}.dist-info"

    def read(self, path: str) -> bytes | None:
        if path not in self.members:
            return None
        try:
            return self._zip.read(path)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
            raise WheelError(f"{self.path.name}: {path}: {e}") from e

    def need(self, path: str) -> bytes:
        """The content of a member that has to be there."""
        data = self.read(path)
        if data is None:
            raise WheelError(f"{self.path.name} has no {path}")
        return data

    def open(self, path: str) -> IO[bytes] | None:
        return self._zip.open(path) if path in self.members else None

    def record(self) -> dict[str, Row]:
        """RECORD, whose paths all lie in the wheel's own tree."""
        try:
            rows = parse_record(self.need(f"{self.dist_info}/RECORD"))
        except RecordError as error:
            raise WheelError(f"{self.path.name}: {error}") from error
        for path in rows:
            if outside(path):
                raise WheelError(f"{self.path.name}: RECORD names {path!r}, outside its tree")
        return rows
