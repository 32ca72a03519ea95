"""The record of what a step made: of which inputs, by which versions, and how its files look.

```json
{"format": "runbook-stamp/1", "kind": "toolkit", "complete": true,
 "inputs": {"provider": "pypi"}, "versions": {"step": "1"},
 "files": {"result": {"bin/nvcc": [22411, 1764169370000000000]}}, "made": {"home": "/w/cuda"}}
```

A record can be lost, cut off or written over by anyone: whatever is not of this form is no record,
and the step goes on as if there were none. What is recorded of a file is its size in bytes and its
time of modification in nanoseconds, so that a quick check only calls stat(2). A stamp holds what
its step gives it: no secret, and no URL that may hold a password.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbook.files import read_json, write_json

FORMAT = "runbook-stamp/1"
RESULT = "result"
"""The usual name of the group of files that a step made."""

Mark = list[int]
"""[size in bytes, time of modification in ns]."""
Marks = dict[str, Mark]
"""By path relative to the folder that they are of."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is not as recorded. `part`: inputs, versions, files, or complete (the step did not
    come to its end); `group`: that of the file."""

    part: str
    name: str = ""
    what: str = ""
    group: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.what}".strip()


@dataclass(frozen=True)
class Stamp:
    """`inputs` and `versions` are compared key by key; `files` holds marks by group; `made` is
    what the step wants to know of its result later, its outputs for example."""

    kind: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Marks] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True

    @classmethod
    def read(cls, path: Path, kind: str) -> Stamp | None:
        """The record at `path`; None if there is none, or none of this kind and form."""
        data = read_record(path)
        return cls.load(data, kind) if data is not None else None

    @classmethod
    def load(cls, data: Mapping[str, Any], kind: str) -> Stamp | None:
        if data.get("format") != FORMAT or data.get("kind") != kind:
            return None
        parts = [data.get(name) for name in ("inputs", "versions", "files", "made")]
        inputs, versions, files, made = parts
        if not all(isinstance(part, dict) for part in parts) or not isinstance(
            data.get("complete"), bool
        ):
            return None
        if not all(map(are_marks, files.values())):  # type: ignore[union-attr]
            return None
        return cls(kind, inputs, versions, files, made, data["complete"])  # type: ignore[arg-type]

    def write(self, path: Path) -> None:
        write_json(path, self.dump())

    def dump(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "complete": self.complete,
            "inputs": dict(self.inputs),
            "versions": dict(self.versions),
            "files": dict(self.files),
            "made": dict(self.made),
        }

    def changed(
        self,
        *,
        inputs: Mapping[str, Any] | None = None,
        versions: Mapping[str, Any] | None = None,
        files: Mapping[str, Marks] | None = None,
    ) -> Change | None:
        """The first part that differs from what is given; None if all is as recorded.

        What is not given is not compared. `files` are the marks of now, by group: of the recorded
        files (`marks(folder, stamp.files[group])`), or of all (`marks_of_all(folder)`), which
        finds new ones too.
        """
        if not self.complete:
            return Change("complete", "it", "was not completed")
        for part, recorded, wanted in (
            ("inputs", self.inputs, inputs),
            ("versions", self.versions, versions),
        ):
            if wanted is not None and (name := _differing(recorded, wanted)):
                return Change(part, name, "is another")
        for group, present in (files or {}).items():
            if found := difference(self.files.get(group, {}), present):
                return Change("files", *found, group)
        return None


def read_record(path: Path) -> dict[str, Any] | None:
    """A JSON object in a file; None where there is none that can be read."""
    try:
        data = read_json(path)
    except (OSError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _differing(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first key whose values differ, as JSON data, or that only one of both has."""
    plain = json.loads(json.dumps(wanted))
    names = [*plain, *(name for name in recorded if name not in plain)]
    return next(
        (n for n in names if n not in recorded or n not in plain or recorded[n] != plain[n]), ""
    )


def mark(path: Path | str) -> Mark | None:
    """The mark of a file; None if it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def marks(folder: Path, names: Iterable[str]) -> Marks:
    """Of these files of a folder, those that are there."""
    root = os.fspath(folder)
    return {name: found for name in names if (found := mark(f"{root}/{name}")) is not None}


def marks_of_all(folder: Path) -> Marks:
    """Of all files that lie in a folder and are not hidden; of a file, itself."""
    found: Marks = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    status = entry.stat()
                    found[entry.name] = [status.st_size, status.st_mtime_ns]
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        if own := mark(folder):
            found[folder.name] = own
    return found


def difference(recorded: Marks, present: Marks) -> tuple[str, str] | None:
    """The first file that is not as recorded, and what it is; None if there is none."""
    for name, known in recorded.items():
        if name not in present:
            return name, "is gone"
        if present[name] != known:
            return name, "was changed"
    return next(((name, "is new") for name in present if name not in recorded), None)


def are_marks(value: object) -> bool:
    """Whether some JSON is marks by path."""
    return isinstance(value, dict) and all(map(is_mark, value.values()))


def is_mark(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and {type(part) for part in value} == {int}
