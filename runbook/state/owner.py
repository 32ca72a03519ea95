"""Which document a workspace belongs to: two of one name would take each other's work for theirs,
end each other's runs and remove each other's files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from runbook.errors import PRECONDITION, RunbookError
from runbook.files import read_json, write_json
from runbook.remedy import Remedy
from runbook.state import records

ADOPT = Remedy(
    "run",
    ("--adopt-workspace",),
    text="name another folder with `--workspace DIR`, or take over all that is in this one: "
    "{command}",
)


class Owner:
    """The document in `owner.json`: its name, and its path unless it is a shipped book, which is
    known by its name."""

    def __init__(self, state: Path, name: str, source: str, shipped: bool) -> None:
        self.state = state
        self._file = state / "owner.json"
        self._mine = {"schema": records.SCHEMA, "name": name, "source": "" if shipped else source}

    def verify(self) -> str:
        """Raise RunbookError if the workspace belongs to another document. What people should know
        of a document that was moved, else ""; nobody's workspace is everybody's."""
        record = self._recorded()
        if record is None or record["source"] == self._mine["source"]:
            if record is None or record["source"] or record["name"] == self._mine["name"]:
                return ""
        elif record["source"] and self._mine["source"]:
            if _same(record["source"], self._mine["source"]):
                return ""
            if not os.path.lexists(record["source"]) and record["name"] == self._mine["name"]:
                return (
                    f"this workspace was made by {record['source']}, which is there no more: "
                    f"{self._mine['source']} goes on with it"
                )
        raise RunbookError(
            f"the workspace {self.state.parent} belongs to another document of the name "
            f"{record['name']}: {record['source'] or 'the shipped book'}",
            code="workspace_of_another_book",
            exit_code=PRECONDITION,
            cause="what is recorded there was made by the steps of that document",
            remedy=ADOPT,
            where=str(self._file),
        )

    def record(self) -> None:
        """Let the workspace, whose folders are there, belong to this document."""
        if self._recorded() != self._mine:
            write_json(self._file, records.sealed(self._mine))

    def _recorded(self) -> dict[str, Any] | None:
        return records.owner(read_json(self._file))


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
