"""A patch series: what it holds, what state a source is in, and the changes that apply it.

Nothing here writes a file. A source is a function from path to content, and the answer is the
content of every path that changes, so a series applies whole or not at all. The format of the
files is described in `patches/README.md`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runbook.steps.vllm.diff import DiffError, FileDiff, HunkMismatch, fit, parse
from runbook.steps.vllm.target import SeriesError, files_of, folder_of

Read = Callable[[str], bytes | None]
"""The content of a path relative to the root of the source, None where there is no such file."""

State = Literal["absent", "applied", "not_needed", "conflicting"]
DIGEST_LENGTH = 8
_KEYS = {"id", "title", "why", "symptom", "upstream", "applies"}


@dataclass(frozen=True, slots=True)
class Anchor:
    """A text that must occur in a file."""

    file: str
    text: str

    def holds(self, read: Read) -> bool:
        data = read(self.file)
        return data is not None and self.text.encode() in data


@dataclass(frozen=True, slots=True)
class Patch:
    name: str
    id: str
    title: str
    why: str
    symptom: str
    upstream: str
    version: str
    anchors: tuple[Anchor, ...]
    unless: tuple[Anchor, ...]
    files: tuple[FileDiff, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Series:
    target: str
    patches: tuple[Patch, ...]
    digest: str

    @property
    def short_digest(self) -> str:
        return short(self.digest)


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


@dataclass(frozen=True, slots=True)
class Touched:
    """SHA-256 of a file before and after a patch; None where it does not exist."""

    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one patch in a source."""

    patch: Patch
    state: State
    files: tuple[Touched, ...] = ()
    conflict: Conflict | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """The state of each patch, and the source without (`base`) and with (`patched`) the series:
    only paths that differ from the source as it was given; None stands for no such file."""

    findings: tuple[Finding, ...]
    base: Mapping[str, bytes | None] = field(default_factory=dict)
    patched: Mapping[str, bytes | None] = field(default_factory=dict)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        return tuple(f.conflict for f in self.findings if f.conflict is not None)


class SeriesConflict(Exception):
    """A series cannot be applied to this source; nothing was changed."""

    def __init__(self, series: Series, findings: Iterable[Finding]) -> None:
        self.series = series
        self.findings = tuple(findings)
        self.conflicts = tuple(f.conflict for f in self.findings if f.conflict is not None)
        super().__init__("\n".join(map(str, self.conflicts)))


def short(digest: str) -> str:
    """The first eight digits, or as many more as it takes to hold a letter: PEP 440 would read a
    segment of digits alone as a number and drop its leading zeros."""
    for length in range(DIGEST_LENGTH, len(digest)):
        if not digest[:length].isdecimal():
            return digest[:length]
    return digest


def load(target: str) -> Series:
    """Read a series; raises `SeriesError`."""
    patches = []
    for path in files_of(target)[1:]:
        try:
            patches.append(read_patch(path))
        except FileNotFoundError:
            raise SeriesError(f"the series {target} names {path.name}, which is absent") from None
        except (ValueError, DiffError) as error:
            raise SeriesError(f"{path}: {error}") from error
    ids = [patch.id for patch in patches]
    for id in ids:
        if ids.count(id) > 1:
            raise SeriesError(f"{folder_of(target)}: the id {id} is used more than once")
    digest = hashlib.sha256("".join(p.digest for p in patches).encode()).hexdigest()
    return Series(Path(target).name, tuple(patches), digest)


def read_patch(path: Path) -> Patch:
    """Read a patch file; raises ValueError (also as `DiffError`)."""
    import yaml

    data = path.read_bytes()
    parts = re.match(rb"---\n(.*?\n)---\n", data, re.DOTALL)
    if parts is None:
        raise ValueError("expected front matter between two lines `---`")
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"front matter: {error}") from error
    body = data[parts.end() :]
    return _patch(path.name, header, body, data[: parts.end()].count(b"\n") + 1)


def _patch(name: str, header: Any, body: bytes, first_line: int) -> Patch:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    _keys(header, _KEYS, "front matter")
    for key in sorted(_KEYS - {"applies"}):
        if not isinstance(header[key], str) or not header[key].strip():
            raise ValueError(f"front matter: `{key}` must be a text")
    if not re.fullmatch(r"[a-z0-9-]+", header["id"]):
        raise ValueError("front matter: `id` must be lower case letters, digits and hyphens")
    applies = header["applies"]
    _keys(applies, {"version", "anchors"}, "applies", {"unless"})
    try:
        SpecifierSet(applies["version"])
    except (InvalidSpecifier, TypeError) as error:
        raise ValueError(f"applies.version: {error}") from error
    files = parse(body, first_line)
    anchors = _anchors(applies["anchors"], "applies.anchors")
    if not anchors and any(file.kind != "create" for file in files):
        raise ValueError("applies.anchors: at least one is needed")
    canonical = json.dumps(applies, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(
        b"\0".join((header["id"].encode(), canonical.encode(), body))
    ).hexdigest()
    return Patch(
        name=name,
        id=header["id"],
        title=header["title"].strip(),
        why=header["why"].strip(),
        symptom=header["symptom"].strip(),
        upstream=header["upstream"].strip(),
        version=applies["version"],
        anchors=anchors,
        unless=_anchors(applies.get("unless", []), "applies.unless"),
        files=files,
        digest=digest,
    )


def _keys(value: Any, required: set[str], where: str, optional: set[str] | None = None) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected keys and values")
    if missing := required - value.keys():
        raise ValueError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := value.keys() - required - (optional or set()):
        raise ValueError(f"{where}: unknown {', '.join(sorted(map(str, unknown)))}")


def _anchors(value: Any, where: str) -> tuple[Anchor, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list")
    found = []
    for item in value:
        _keys(item, {"file", "text"}, where)
        if not (isinstance(item["file"], str) and isinstance(item["text"], str) and item["text"]):
            raise ValueError(f"{where}: `file` and `text` must be texts")
        found.append(Anchor(item["file"], item["text"]))
    return tuple(found)


class _Tree:
    """A source with changes laid over it."""

    def __init__(self, read: Read, changes: Mapping[str, bytes | None] | None = None) -> None:
        self._read = read
        self.changes: dict[str, bytes | None] = dict(changes or {})

    def read(self, path: str) -> bytes | None:
        return self.changes[path] if path in self.changes else self._read(path)

    def copy(self) -> _Tree:
        return _Tree(self._read, self.changes)

    def differences(self) -> dict[str, bytes | None]:
        return {path: data for path, data in self.changes.items() if data != self._read(path)}


@dataclass(frozen=True, slots=True)
class _Pass:
    """One walk over the series in one direction."""

    findings: tuple[Finding, ...]
    tree: _Tree
    displacement: int

    @property
    def fits(self) -> bool:
        return all(finding.state != "conflicting" for finding in self.findings)

    @property
    def moved_any(self) -> bool:
        return any(finding.state in ("absent", "applied") for finding in self.findings)


def examine(series: Series, read: Read, version: str) -> Examination:
    """The state of each patch in a source of the release `version`.

    A source that is wholly without or wholly with the series is told by walking forwards or
    backwards over all of it. Where both fit (a hunk may match by chance elsewhere), the direction
    whose hunks are where they say is right. Else the patches are judged one by one.
    """
    forward = _walk(series, _Tree(read), version)
    backward = _walk(series, _Tree(read), version, backwards=True)
    if backward.fits and backward.moved_any:
        prefer = not (forward.fits and forward.moved_any)
        if prefer or backward.displacement < forward.displacement:
            return Examination(backward.findings, backward.tree.differences(), {})
    if forward.fits:
        return Examination(forward.findings, {}, forward.tree.differences())
    return _mixed(series, read, version, forward)


def patched(series: Series, read: Read, version: str) -> Mapping[str, bytes | None]:
    """What changes when the series is applied; empty if it is applied already.

    Raises `SeriesConflict` if any of its patches is in conflict.
    """
    found = examine(series, read, version)
    if found.conflicts:
        raise SeriesConflict(series, found.findings)
    return found.patched


def unpatched(series: Series, read: Read, version: str) -> Mapping[str, bytes | None]:
    """What changes when the series is taken off; empty if it is not applied."""
    found = examine(series, read, version)
    if found.conflicts:
        raise SeriesConflict(series, found.findings)
    return found.base


def _walk(series: Series, tree: _Tree, version: str, *, backwards: bool = False) -> _Pass:
    findings = []
    displacement = 0
    for patch in reversed(series.patches) if backwards else series.patches:
        move = _backward if backwards else _forward
        finding, moved = move(patch, tree, version)
        findings.append(finding)
        displacement += moved
    return _Pass(tuple(findings[::-1] if backwards else findings), tree, displacement)


def _mixed(series: Series, read: Read, version: str, forward: _Pass) -> Examination:
    """Some patches applied and some not, or a real conflict.

    Take off what is applied, then lay the whole series on again. The patches taken off must come
    back as they were, else one of them only seemed to be applied.
    """
    base = _Tree(read)
    applied = set()
    for patch in reversed(series.patches):
        without = base.copy()
        finding, moved = _backward(patch, without, version)
        if finding.state == "applied" and not _fits_better(patch, base, version, moved):
            applied.add(patch.id)
            base = without
    again = _walk(
        replace(series, patches=tuple(p for p in series.patches if p.id in applied)),
        base.copy(),
        version,
    )
    if not again.fits or again.tree.differences():
        return Examination(forward.findings)
    whole = _walk(series, base.copy(), version)
    findings = tuple(
        replace(f, state="applied") if f.patch.id in applied and f.state == "absent" else f
        for f in whole.findings
    )
    if not whole.fits:
        return Examination(findings)
    return Examination(findings, base.differences(), whole.tree.differences())


def _fits_better(patch: Patch, tree: _Tree, version: str, moved: int) -> bool:
    """Whether a patch that comes off after moving its hunks would go on with less moving."""
    finding, forward = _forward(patch, tree.copy(), version)
    return finding.state == "absent" and forward <= moved


def _forward(patch: Patch, tree: _Tree, version: str) -> tuple[Finding, int]:
    if not _concerns(patch, version) or _superseded(patch, tree.read):
        return Finding(patch, "not_needed"), 0
    for anchor in patch.anchors:
        if not anchor.holds(tree.read):
            message = f"the text {anchor.text!r}, which this patch relies on, is not there"
            conflict = Conflict(patch.id, anchor.file, message)
            return Finding(patch, "conflicting", conflict=conflict), 0
    try:
        changes, moved = _changes(patch, tree.read, reverse=False)
    except _Unfit as unfit:
        return Finding(patch, "conflicting", conflict=unfit.conflict), 0
    touched = _touched(tree.read, changes, reverse=False)
    tree.changes.update(changes)
    return Finding(patch, "absent", touched), moved


def _backward(patch: Patch, tree: _Tree, version: str) -> tuple[Finding, int]:
    if not _concerns(patch, version):
        return Finding(patch, "not_needed"), 0
    try:
        changes, moved = _changes(patch, tree.read, reverse=True)
    except _Unfit as unfit:
        if _superseded(patch, tree.read):
            return Finding(patch, "not_needed"), 0
        return Finding(patch, "conflicting", conflict=unfit.conflict), 0
    touched = _touched(tree.read, changes, reverse=True)
    tree.changes.update(changes)
    return Finding(patch, "applied", touched), moved


def _concerns(patch: Patch, version: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    public = Version(Version(version).public)
    return SpecifierSet(patch.version).contains(public, prereleases=True)


def _superseded(patch: Patch, read: Read) -> bool:
    return bool(patch.unless) and all(anchor.holds(read) for anchor in patch.unless)


def _touched(
    read: Read, changes: Mapping[str, bytes | None], *, reverse: bool
) -> tuple[Touched, ...]:
    pairs = ((path, _sha256(read(path)), _sha256(data)) for path, data in sorted(changes.items()))
    return tuple(Touched(p, new, old) if reverse else Touched(p, old, new) for p, old, new in pairs)


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


class _Unfit(Exception):
    def __init__(self, conflict: Conflict) -> None:
        super().__init__(str(conflict))
        self.conflict = conflict


def _changes(patch: Patch, read: Read, *, reverse: bool) -> tuple[dict[str, bytes | None], int]:
    """What one patch changes in one direction, and how far its hunks had moved."""
    changes: dict[str, bytes | None] = {}
    total = 0
    # Backwards, a copy is compared with its source as it is once this patch is off it.
    files = sorted(patch.files, key=lambda f: f.kind == "copy") if reverse else patch.files
    for file in files:
        step = _file_backward if reverse else _file_forward
        result, moved = step(patch, file, read, changes)
        changes.update(result)
        total += moved
    return changes, total


Result = tuple[dict[str, bytes | None], int]


def _file_forward(
    patch: Patch, file: FileDiff, read: Read, _: Mapping[str, bytes | None]
) -> Result:
    if file.kind in ("create", "copy", "rename") and read(file.new) is not None:
        raise _Unfit(Conflict(patch.id, file.new, "the file exists already"))
    source = b"" if file.kind == "create" else read(file.old)
    if source is None:
        raise _Unfit(Conflict(patch.id, file.old, "there is no such file"))
    data, moved = _fit(patch, file, file.old, source, reverse=False)
    if file.kind == "delete":
        if data:
            raise _Unfit(Conflict(patch.id, file.old, "the file holds more than is deleted"))
        return {file.old: None}, moved
    if file.kind == "rename":
        return {file.old: None, file.new: data}, moved
    return {file.new: data}, moved


def _file_backward(
    patch: Patch, file: FileDiff, read: Read, changes: Mapping[str, bytes | None]
) -> Result:
    if file.kind in ("delete", "rename") and read(file.old) is not None:
        raise _Unfit(Conflict(patch.id, file.old, "the file exists"))
    target = b"" if file.kind == "delete" else read(file.new)
    if target is None:
        raise _Unfit(Conflict(patch.id, file.new, "there is no such file"))
    data, moved = _fit(patch, file, file.new, target, reverse=True)
    if file.kind == "create":
        if data:
            raise _Unfit(Conflict(patch.id, file.new, "the file holds more than was created"))
        return {file.new: None}, moved
    if file.kind == "rename":
        return {file.new: None, file.old: data}, moved
    if file.kind == "copy":
        source = changes[file.old] if file.old in changes else read(file.old)
        if data != source:
            raise _Unfit(Conflict(patch.id, file.new, f"it is not a patched copy of {file.old}"))
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
        raise _Unfit(Conflict(patch.id, path, message, miss.number, miss.near)) from None
    return fitted.data, fitted.displacement
