"""The state folder of a workspace: lock, checkpoints, runs. One writer, plain files."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runbook.errors import LOCKED, RunbookError
from runbook.files import read_json, sync_folder, write_atomic
from runbook.process import Identity
from runbook.redact import Redactor

SCHEMA = "runbook/1"
# From how many steps on one file with all checkpoints pays.
MANY_STEPS = 100
# A probe of the lock holds it for microseconds; a run that meets one tries again for this long.
LOCK_PATIENCE = 0.3


class Workspace:
    """The folder of one runbook: what its steps make, and under `.runbook` what is known of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / ".runbook"
        self.lock_file = self.state / "lock"
        self.checkpoints = self.state / "checkpoints"
        self.runs = self.state / "runs"
        self._index: dict[str, Any] | None = None
        self._common: dict[str, Any] = {}
        self._index_file = self.state / "checkpoints.index.json"
        self._checkpoints = str(self.checkpoints)  # joining paths is slow, for thousands of steps

    def create(self) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.runs.mkdir(exist_ok=True)
        except OSError as error:
            raise RunbookError(
                f"cannot create the workspace {self.root}",
                code="workspace_not_writable",
                exit_code=3,
                cause=str(error),
                remedy="choose another folder with --workspace or RUNBOOK_WORKSPACE",
            ) from error

    # Checkpoints -----------------------------------------------------------------------------

    def checkpoint(self, step: str) -> dict[str, Any] | None:
        """The record of a step's last verified success; None if it never had one, or lost it."""
        if self._index is not None:
            record = self._index.get(step)
            if record is not None:
                record = {**self._common, **record}
                if "inputs" not in record and "fingerprint" in record:
                    record["inputs"] = record["fingerprint"]["with"]
        else:
            record = read_json(f"{self._checkpoints}/{step}.json")
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            return None
        return record

    def read_index(self, steps: int) -> None:
        """Take all checkpoints from one file if it is as new as their folder: opening thousands
        of files is the larger part of a run that does nothing. The files are what counts."""
        if steps < MANY_STEPS:
            return
        index = read_json(self._index_file)
        if not isinstance(index, dict) or "common" not in index:
            return
        if index["folder"] == self._folder_time():
            self._index, self._common = index["records"], index["common"]

    def write_index(self, steps: Sequence[str]) -> None:
        if self._index is None and len(steps) >= MANY_STEPS:
            folder = self._folder_time()
            records = {step: record for step in steps if (record := self.checkpoint(step))}
            # What all share stands once: parsing is a good part of a run that does nothing.
            first = next(iter(records.values()), {})
            common = {
                key: value
                for key, value in first.items()
                if all(key in record and record[key] == value for record in records.values())
            }
            for record in records.values():
                for key in common:
                    del record[key]
                if record.get("inputs", 0) == record.get("fingerprint", {}).get("with"):
                    del record["inputs"]
            index = {"folder": folder, "common": common, "records": records}
            text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
            write_atomic(self._index_file, text.encode())

    def _folder_time(self) -> int | None:
        """When a checkpoint was last written or removed, in nanoseconds."""
        try:
            return os.stat(self._checkpoints).st_mtime_ns
        except FileNotFoundError:
            return None

    def write_checkpoint(self, step: str, record: dict[str, Any], redactor: Redactor) -> None:
        self._index = None
        text = json.dumps({"schema": SCHEMA, "step": step, **record}, ensure_ascii=False, indent=1)
        write_atomic(self.checkpoints / f"{step}.json", (redactor.text(text) + "\n").encode())

    def remove_checkpoint(self, step: str) -> None:
        self._index = None
        (self.checkpoints / f"{step}.json").unlink(missing_ok=True)
        sync_folder(self.checkpoints)

    # Runs ------------------------------------------------------------------------------------

    def latest(self) -> Path | None:
        """The folder of the latest run."""
        link = self.state / "latest"
        try:
            return self.state / os.readlink(link)
        except OSError:
            return None

    def new_run(self) -> Path:
        """Make the folder of a run and point `latest` at it once its journal begins."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = self.runs / f"{stamp}-{os.urandom(2).hex()}"
        folder.mkdir()
        return folder

    def point_latest(self, run: Path) -> None:
        temporary = self.state / f".latest.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run.relative_to(self.state))
        os.replace(temporary, self.state / "latest")

    # Lock ------------------------------------------------------------------------------------

    def acquire(self) -> int:
        """Take the lock; the descriptor is inheritable, so that a worker which outlives its
        supervisor still holds it. Raises RunbookError with exit code 6 if another run has it."""
        self.create()
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                os.close(descriptor)
                raise self._held() from None
        os.set_inheritable(descriptor, True)
        self.claim(descriptor, "")
        return descriptor

    def claim(self, descriptor: int, run: str) -> None:
        """Write into the lock who holds it, and for which run once that has begun."""
        me = Identity.of(os.getpid())
        assert me is not None
        # One write of one length: a reader never sees a mixture.
        os.pwrite(descriptor, json.dumps({"run": run, **me.dump()}).encode().ljust(256), 0)

    def _held(self) -> RunbookError:
        supervisor, run = self.supervisor()
        if supervisor is not None and supervisor.alive():
            return RunbookError(
                f"another run of this workspace is going on: {run or 'it is just beginning'}",
                code="locked",
                exit_code=LOCKED,
                cause=f"process {supervisor.pid} holds {self.lock_file}",
                remedy="`runbook wait` to wait for it, `runbook cancel` to end it",
                retryable=True,
                next=("runbook wait", "runbook status", "runbook cancel"),
            )
        return RunbookError(
            "a step of an earlier run is still working though its supervisor is gone",
            code="orphaned",
            exit_code=LOCKED,
            cause=f"its worker process holds {self.lock_file}",
            remedy="`runbook wait` to let it finish, `runbook cancel` to end it",
            retryable=True,
            next=("runbook wait", "runbook cancel"),
        )

    def locked(self) -> bool:
        """Whether a run, or a worker it left behind, holds the lock."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)

    def supervisor(self) -> tuple[Identity | None, str]:
        """Who last held the lock, and for which run."""
        record = read_json(self.lock_file)
        if not isinstance(record, dict):
            return None, ""
        return Identity.load(record), str(record.get("run", ""))


def default_workspace(book: str) -> Path:
    """`RUNBOOK_WORKSPACE`, else `$XDG_DATA_HOME/runbook/<book>`, else under `~/.local/share`."""
    if own := os.environ.get("RUNBOOK_WORKSPACE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base).absolute() / "runbook" / book
