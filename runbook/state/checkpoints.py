"""Checkpoints: the records of the last verified success of each step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runbook.files import read_json, read_sealed, set_aside, sync_folder, write_json, write_sealed
from runbook.redact import Redactor
from runbook.state import records
from runbook.state.records import SCHEMA

# From how many steps on one file with all checkpoints pays.
MANY_STEPS = 100


class Checkpoints:
    """One file a step, and of many steps an index with all. The files are what counts."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "checkpoints"
        self._index_file = state / "checkpoints.index.json"
        self._index: dict[str, Any] | None = None
        self._common: dict[str, Any] = {}
        self._folder = str(self.folder)  # joining paths is slow, for thousands of steps

    def read(self, step: str) -> dict[str, Any] | None:
        """The record of a step's last verified success; None if it never had one, or lost it."""
        if self._index is None:
            return records.checkpoint(read_json(f"{self._folder}/{step}.json"), step)
        record = self._index.get(step)
        if record is None:
            return None
        record = {**self._common, **record}
        if "inputs" not in record:
            record["inputs"] = record["fingerprint"]["with"]
        return record

    def write(self, step: str, record: Mapping[str, Any], redactor: Redactor) -> None:
        self._index = None
        whole = redactor.data({"schema": SCHEMA, "step": step, **record})
        write_json(self.folder / f"{step}.json", records.sealed(whole))

    def remove(self, step: str) -> None:
        self._index = None
        path = self.folder / f"{step}.json"
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            set_aside(path)
        sync_folder(self.folder)

    def steps(self) -> list[str]:
        """The ids of all steps that have a checkpoint, those included that no document names."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        return sorted(n.removesuffix(".json") for n in names if n.endswith(".json") and n[0] != ".")

    def read_index(self, steps: int) -> None:
        """Take all checkpoints from one file if it is as new as their folder: opening thousands
        of files is the larger part of a run that does nothing."""
        if steps < MANY_STEPS:
            return
        index = read_sealed(self._index_file)
        if isinstance(index, dict) and index.get("folder") == self._folder_time():
            self._index, self._common = index["records"], index["common"]

    def write_index(self, steps: Sequence[str]) -> None:
        if self._index is not None or len(steps) < MANY_STEPS:
            return
        folder = self._folder_time()
        found = {step: record for step in steps if (record := self.read(step))}
        # What all share stands once: parsing is a good part of a run that does nothing.
        first = next(iter(found.values()), {})
        common = {
            key: value
            for key, value in first.items()
            if all(key in record and record[key] == value for record in found.values())
        }
        for record in found.values():
            for key in common:
                del record[key]
            if "inputs" in record and record["inputs"] == record.get("fingerprint", {}).get("with"):
                del record["inputs"]
        write_sealed(self._index_file, {"folder": folder, "common": common, "records": found})

    def _folder_time(self) -> int | None:
        """When a checkpoint was last written or removed, in nanoseconds."""
        try:
            return os.stat(self._folder).st_mtime_ns
        except OSError:
            return None
