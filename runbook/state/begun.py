"""What attempts were asked that have begun: until the step is verified anew, its checkpoint says
nothing, for the attempt may have got anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runbook.files import make_folder, read_json, set_aside, write_json
from runbook.state import records


class Begun:
    """A file for each step, `begun/<step>.json`, with `attempt` (`<run>/<number>`) and
    `fingerprint`, the digest of what it was asked, and what undoes it: `uses`, `folder`, `inputs`.
    One that cannot be read is of another."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "begun"

    def steps(self) -> frozenset[str]:
        try:
            names = os.listdir(self.folder)
        except OSError:
            return frozenset()
        return frozenset(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def read(self, step: str) -> dict[str, str]:
        record = read_json(self.folder / f"{step}.json")
        if not isinstance(record, dict):
            record = {}
        return {key: str(record.get(key, "")) for key in ("attempt", "fingerprint")}

    def origin(self, step: str) -> dict[str, Any] | None:
        """What is being made, and from what: `uses`, `folder`, `inputs`; None if that is lost."""
        return records.begun(read_json(self.folder / f"{step}.json"))

    def write(self, step: str, attempt: str, fingerprint: str, origin: Mapping[str, Any]) -> None:
        make_folder(self.folder)
        record = {"attempt": attempt, "fingerprint": fingerprint, **origin}
        write_json(self.folder / f"{step}.json", records.sealed(record))

    def remove(self, step: str) -> None:
        """The step was verified, or undone."""
        path = self.folder / f"{step}.json"
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except IsADirectoryError:
            set_aside(path)
