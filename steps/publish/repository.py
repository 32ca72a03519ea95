"""What the local hub serves: one model repository at one revision, described by a manifest."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from runbook.steps.common.stamp import Stamp
from runbook.steps.publish import git

Access = Literal["open", "gated", "private"]

KIND = "publish"
"""Of the stamp that is the manifest."""
LARGE = 10 * 2**20
"""The hub keeps files above 10 MiB, and all of these kinds, in large file storage."""
LARGE_KINDS = (".safetensors", ".bin", ".gguf", ".npz", ".pt")


@dataclass(frozen=True, slots=True)
class File:
    """`oid`: git blob id (of the pointer, for a large file); `sha256`: of a large file only."""

    path: str
    size: int
    oid: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def listing(self) -> dict[str, Any]:
        """The file's entry in the hub's answer to a tree request."""
        entry: dict[str, Any] = {
            "type": "file",
            "oid": self.oid,
            "size": self.size,
            "path": self.path,
        }
        if self.sha256:
            size = len(git.pointer(self.sha256, self.size))
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": size}
        return entry


@dataclass(frozen=True)
class Repository:
    name: str
    revision: str
    folder: Path
    files: tuple[File, ...]
    access: Access = "open"

    def find(self, path: str) -> File | None:
        return self._by_path.get(path)

    def find_large(self, sha256: str) -> File | None:
        return self._by_sha256.get(sha256)

    @cached_property
    def folders(self) -> dict[str, str]:
        """The ids of all folders by path."""
        return git.tree_ids((f.path, f.oid) for f in self.files)

    @cached_property
    def _by_path(self) -> dict[str, File]:
        return {f.path: f for f in self.files}

    @cached_property
    def _by_sha256(self) -> dict[str, File]:
        return {f.sha256: f for f in self.files if f.sha256}

    def dump(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "revision": self.revision,
            "folder": str(self.folder),
            "access": self.access,
            "files": [asdict(f) for f in self.files],
        }

    @classmethod
    def load(cls, manifest: Path) -> Repository:
        """By the stamp that the step leaves. Raises ValueError for a manifest that is none."""
        made = Stamp.read(manifest, KIND)
        if made is None:
            raise ValueError(f"{manifest} is no manifest")
        data = made.made
        files = tuple(File(**f) for f in data["files"])
        return cls(data["name"], data["revision"], Path(data["folder"]), files, data["access"])

    @classmethod
    def of(cls, folder: Path, name: str, access: Access = "open") -> Repository:
        """Read a folder and name all that is in it. Hashes every byte."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        files = tuple(_describe(path, path.relative_to(folder).as_posix()) for path in paths)
        tree = git.tree_ids((f.path, f.oid) for f in files)[""]
        return cls(name, git.commit_id(tree, f"Publish {name}"), folder, files, access)


def _describe(path: Path, name: str) -> File:
    size = path.stat().st_size
    if size <= LARGE and not name.endswith(LARGE_KINDS):
        return File(name, size, git.blob_id(path))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name, size, git.object_id("blob", git.pointer(sha256, size)), sha256)
