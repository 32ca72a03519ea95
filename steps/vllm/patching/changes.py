"""What one patch changes in a source, in one direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from runbook.steps.vllm.patching.diff import FileDiff, HunkMismatch, fit
from runbook.steps.vllm.patching.patch import Patch, Read

Changes = dict[str, bytes | None]
"""Content by path; None stands for no such file."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why a patch fits neither forwards nor backwards. `line` counts from 1."""

    patch: str
    file: str
    message: str
    hunk: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        hunk = "" if self.hunk is None else f", hunk {self.hunk}"
        return f"{self.patch}: {self.file}{hunk}: {self.message}"


class Unfit(Exception):
    def __init__(self, conflict: Conflict) -> None:
        super().__init__(str(conflict))
        self.conflict = conflict


def changes_of(patch: Patch, read: Read, *, reverse: bool) -> tuple[Changes, int]:
    """What one patch changes in one direction, and how far its hunks had moved."""
    changes: Changes = {}
    total = 0
    # Backwards, a copy is compared with its source as it is once this patch is off it.
    files = sorted(patch.files, key=lambda f: f.kind == "copy") if reverse else patch.files
    for file in files:
        step = _file_backward if reverse else _file_forward
        result, moved = step(patch, file, read, changes)
        changes.update(result)
        total += moved
    return changes, total


def _file_forward(
    patch: Patch, file: FileDiff, read: Read, _: Mapping[str, bytes | None]
) -> tuple[Changes, int]:
    if file.kind in ("create", "copy", "rename"):
        if read(file.new) is not None:
            raise Unfit(Conflict(patch.id, file.new, "the file exists already"))
        for folder in map(str, PurePosixPath(file.new).parents):
            if read(folder) is not None:
                raise Unfit(Conflict(patch.id, file.new, f"{folder} is a file"))
    source = b"" if file.kind == "create" else read(file.old)
    if source is None:
        raise Unfit(Conflict(patch.id, file.old, "there is no such file"))
    data, moved = _fit(patch, file, file.old, source, reverse=False)
    if file.kind == "delete":
        if data:
            raise Unfit(Conflict(patch.id, file.old, "the file holds more than is deleted"))
        return {file.old: None}, moved
    if file.kind == "rename":
        return {file.old: None, file.new: data}, moved
    return {file.new: data}, moved


def _file_backward(
    patch: Patch, file: FileDiff, read: Read, changes: Mapping[str, bytes | None]
) -> tuple[Changes, int]:
    if file.kind in ("delete", "rename") and read(file.old) is not None:
        raise Unfit(Conflict(patch.id, file.old, "the file exists"))
    target = b"" if file.kind == "delete" else read(file.new)
    if target is None:
        raise Unfit(Conflict(patch.id, file.new, "there is no such file"))
    data, moved = _fit(patch, file, file.new, target, reverse=True)
    if file.kind == "create":
        if data:
            raise Unfit(Conflict(patch.id, file.new, "the file holds more than was created"))
        return {file.new: None}, moved
    if file.kind == "rename":
        return {file.new: None, file.old: data}, moved
    if file.kind == "copy":
        source = changes[file.old] if file.old in changes else read(file.old)
        if data != source:
            raise Unfit(Conflict(patch.id, file.new, f"it is not a patched copy of {file.old}"))
        return {file.new: None}, moved
    return {file.old: data}, moved


def _fit(
    patch: Patch, file: FileDiff, path: str, data: bytes, *, reverse: bool
) -> tuple[bytes, int]:
    hunks = tuple(hunk.reversed() for hunk in file.hunks) if reverse else file.hunks
    try:
        fitted = fit(data, hunks)
    except HunkMismatch as miss:
        message = f"{miss.reason} ({miss.hunk.header})"
        if miss.near is not None and (miss.wanted or miss.found):
            message += (
                f"; nearest is line {miss.near}: wanted {miss.wanted!r}, found {miss.found!r}"
            )
        raise Unfit(Conflict(patch.id, path, message, miss.number, miss.near)) from None
    return fitted.data, fitted.displacement
