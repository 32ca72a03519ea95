"""The folders of runs, in their order, and which is the latest."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from runbook.files import set_aside, sync_folder

# A number that rises, for a clock can be set back; the time is for people.
_NUMBER = re.compile(r"(\d{6,})-")


class Runs:
    """Folders `runs/<number>-<time>-<chance>`, and the link `latest` to one of them."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "runs"
        self._state = state
        self._link = state / "latest"

    def latest(self) -> Path | None:
        """The folder of the latest run: where the link points, or the last that was begun if that
        is lost."""
        try:
            target = os.readlink(self._link)
        except OSError:
            target = ""
        holder, _, name = target.rpartition("/")
        folder = self.folder / name
        if holder == "runs" and name not in ("", ".", "..") and folder.is_dir():
            return folder
        return next(iter(self.newest_first()), None)

    def latest_name(self) -> str:
        """The name of the latest run; "" if there is none."""
        latest = self.latest()
        return latest.name if latest is not None else ""

    def newest_first(self) -> list[Path]:
        """The folders of all runs."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        paths = [path for name in names if os.path.isdir(path := os.path.join(self.folder, name))]
        return sorted(map(Path, paths), key=lambda run: (_number(run), run.name), reverse=True)

    def new(self) -> Path:
        """Make the folder of a run. `latest` is to be pointed at it once its journal begins."""
        newest = self.newest_first()
        number = _number(newest[0]) + 1 if newest else 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = self.folder / f"{number:06d}-{stamp}-{os.urandom(2).hex()}"
        folder.mkdir()
        return folder

    def point_latest(self, run: Path) -> None:
        temporary = self._state / f".latest.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run.relative_to(self._state))
        try:
            os.replace(temporary, self._link)
        except IsADirectoryError:
            set_aside(self._link)
            os.replace(temporary, self._link)
        sync_folder(self._state)


def _number(run: Path) -> int:
    match = _NUMBER.match(run.name)
    return int(match[1]) if match is not None else 0
