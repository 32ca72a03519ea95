"""Git's object names, which are what the hub calls its files, folders and revisions.

A blob, a tree and a commit are named by the SHA-1 of `<kind> <length>\\0<content>`; a file kept in
large file storage is in the tree as a pointer, a text of three lines
(https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

BLOCK = 1 << 20


def object_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content).hexdigest()


def blob_id(path: Path) -> str:
    """The blob id of a file's content, read in blocks."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that stands in the tree for a file in large file storage."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()


def tree_ids(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The ids of all folders, from (path, blob id) of all files; the root is called ``""``."""
    folders: dict[str, list[tuple[str, str, str]]] = {"": []}
    for path, oid in files:
        parent, _, name = path.rpartition("/")
        folders.setdefault(parent, []).append((name, "100644", oid))
        while parent:
            parent = parent.rpartition("/")[0]
            folders.setdefault(parent, [])
    ids: dict[str, str] = {}
    for folder in sorted(folders, key=lambda f: f.count("/") + bool(f), reverse=True):
        # Git sorts a folder's name as if it ended in a slash.
        entries = sorted(folders[folder], key=lambda e: e[0] + ("/" if e[1] == "40000" else ""))
        content = b"".join(
            f"{mode} {name}".encode() + b"\0" + bytes.fromhex(oid) for name, mode, oid in entries
        )
        ids[folder] = object_id("tree", content)
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent].append((name, "40000", ids[folder]))
    return ids


def commit_id(tree: str, message: str) -> str:
    """The id of a commit without parents, author fixed and time zero: it depends on the content
    alone, so that the same checkpoint is the same revision on every machine."""
    who = "runbook <runbook@localhost> 0 +0000"
    return object_id(
        "commit", f"tree {tree}\nauthor {who}\ncommitter {who}\n\n{message}\n".encode()
    )
