"""The state folder of a workspace: lock, checkpoints, runs. One writer, plain files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runbook.errors import RunbookError
from runbook.files import home, make_folder
from runbook.redact import Redactor
from runbook.state.begun import Begun
from runbook.state.checkpoints import Checkpoints
from runbook.state.lock import Lock
from runbook.state.runs import Runs


class Workspace:
    """The folder of one runbook: what its steps make, and under `.runbook` what is known of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".runbook"
        self._runs = Runs(self.state)
        self._records = Checkpoints(self.state)
        self.begun = Begun(self.state)
        self._lock = Lock(root, self.state / "lock", self._runs.latest_name)
        self.lock_file = self._lock.file
        self.runs, self.checkpoints = self._runs.folder, self._records.folder
        # What its parts do is done by their names.
        self.latest, self.new_run = self._runs.latest, self._runs.new
        self.runs_newest_first, self.point_latest = self._runs.newest_first, self._runs.point_latest
        self.locked, self.supervisor = self._lock.locked, self._lock.supervisor
        self.checkpoint = self._records.read
        self.read_index, self.write_index = self._records.read_index, self._records.write_index

    def create(self) -> None:
        """Make its folders."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.state, self.checkpoints, self.runs):
                make_folder(folder)
            self._close()
        except OSError as error:
            raise RunbookError(
                f"cannot create the workspace {self.root}",
                code="workspace_not_writable",
                exit_code=3,
                cause=str(error),
                remedy="choose another folder with --workspace or RUNBOOK_WORKSPACE",
            ) from error

    def _close(self) -> None:
        """Let nobody else into the state folder: it holds what programs have printed."""
        found = os.stat(self.state)
        if found.st_mode & 0o077 and found.st_uid == os.geteuid():
            os.chmod(self.state, 0o700)

    def recorded(self) -> list[str]:
        """The ids of all steps of which there is a record, those included that the document no
        longer names."""
        return sorted({*self._records.steps(), *self.begun.steps()})

    def acquire(self) -> int:
        """Take the lock; see `Lock.acquire`."""
        self.create()
        return self._lock.acquire()

    def claim(self, lock: int, run: str) -> None:
        """Say which run the lock is held for."""
        self._lock.claim(run)

    def write_checkpoint(self, step: str, record: Mapping[str, Any], redactor: Redactor) -> None:
        self._records.write(step, record, redactor)
        self.begun.remove(step)

    def remove_checkpoint(self, step: str) -> None:
        self._records.remove(step)
        self.begun.remove(step)


def default_workspace(book: str) -> Path:
    """`RUNBOOK_WORKSPACE`, else `$XDG_DATA_HOME/runbook/<book>`, else under `~/.local/share`."""
    if own := os.environ.get("RUNBOOK_WORKSPACE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_DATA_HOME") or str(home() / ".local" / "share")
    return Path(base).absolute() / "runbook" / book
