"""Files by content, shared by all workspaces of a user.

```
<cache>/<kind>/<sha256>/<file name>    kind: wheels, archives
<cache>/partial/<sha256>/              downloads that can go on
<cache>/built/<key>                    name and SHA-256 of what was made from the inputs of `key`
<cache>/staging/<key>/                 work in progress; emptied by the next one to hold its lock
<cache>/locks/<key>
```
A file appears under its final name by a rename after it was written whole, so what a killed process
leaves behind is only ever in `staging`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runbook.files import read_json, write_json


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(recipe: Any) -> str:
    """A key for plain data: SHA-256 of its canonical JSON."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    def __init__(self, root: Path, kind: str = "wheels") -> None:
        self._root = root
        self._kind = kind

    def find(self, sha256: str) -> Path | None:
        """The file with this content, read and verified; a damaged one is removed."""
        folder = self._root / self._kind / sha256
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not path.name.startswith(".") and sha256_file(path) == sha256:
                return path
            path.unlink(missing_ok=True)
        return None

    def add(self, path: Path) -> tuple[str, Path]:
        """Move a finished file in; gives its SHA-256 and where it lies now."""
        with path.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        place = self._root / self._kind / digest / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o444)
        path.replace(place)
        return digest, place

    def adopt(self, folder: Path, wanted: Collection[str]) -> None:
        """Take the files whose SHA-256 is wanted out of a download folder of any layout.

        `folder` must be on the file system of the cache. What has no wanted digest (a download
        that was cut off) stays where it is.
        """
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if sha256_file(path) in wanted:
                self.add(path)

    def partial(self, sha256: str) -> Path:
        """A folder for the download of a file with this content."""
        folder = self._root / "partial" / sha256
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def built(self, key: str) -> tuple[str, Path] | None:
        """What was made under `key` before, if it is still there and whole."""
        note = read_json(self._root / "built" / key)
        if not isinstance(note, dict):
            return None
        digest, name = str(note.get("sha256")), str(note.get("name"))
        found = self.find(digest)
        return (digest, found) if found is not None and found.name == name else None

    def note(self, key: str, digest: str, name: str) -> None:
        built = self._root / "built"
        built.mkdir(parents=True, exist_ok=True)
        write_json(built / key, {"sha256": digest, "name": name})

    @contextmanager
    def work(self, key: str) -> Iterator[Path]:
        """An empty folder for making what `key` stands for. Only one process has it at a time:
        look again for the result once inside, another one may have made it meanwhile."""
        locks = self._root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        staging = self._root / "staging" / key
        with (locks / key).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
