"""The state of each patch of a series in a source, and what applying or removing it changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from runbook.steps.vllm.patching.changes import Changes, Conflict, Unfit, changes_of
from runbook.steps.vllm.patching.patch import Patch, Read
from runbook.steps.vllm.patching.series import Series
from runbook.steps.vllm.target import SeriesError

State = Literal["absent", "applied", "not_needed", "conflicting"]


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
    reason: str = ""
    """Of a patch that is not needed: why, and the upstream change that made it so."""


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


class _Tree:
    """A source with changes laid over it."""

    def __init__(self, read: Read, changes: Mapping[str, bytes | None] | None = None) -> None:
        self._read = read
        self.changes: Changes = dict(changes or {})

    def read(self, path: str) -> bytes | None:
        return self.changes[path] if path in self.changes else self._read(path)

    def copy(self) -> _Tree:
        return _Tree(self._read, self.changes)

    def differences(self) -> Changes:
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
    """What changes when the series is applied; empty if it is applied already, or has no patch.

    Raises `SeriesError` if the release is none of the series' or no patch is needed in it, and
    `SeriesConflict` if any of its patches is in conflict.
    """
    series.require_release(version)
    if not series.patches:
        return {}
    found = examine(series, read, version)
    if found.conflicts:
        raise SeriesConflict(series, found.findings)
    if all(finding.state == "not_needed" for finding in found.findings):
        why = "; ".join(f"{finding.patch.id}: {finding.reason}" for finding in found.findings)
        raise SeriesError(
            f"no patch of the series {series.target} is needed in this source: {why}",
            code="series_without_effect",
        )
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
    if reason := _not_needed(patch, tree, version):
        return Finding(patch, "not_needed", reason=reason), 0
    for anchor in patch.anchors:
        if not anchor.holds(tree.read):
            message = f"the text {anchor.text!r}, which this patch relies on, is not there"
            conflict = Conflict(patch.id, anchor.file, message)
            return Finding(patch, "conflicting", conflict=conflict), 0
    try:
        changes, moved = changes_of(patch, tree.read, reverse=False)
    except Unfit as unfit:
        return Finding(patch, "conflicting", conflict=unfit.conflict), 0
    touched = _touched(tree.read, changes, reverse=False)
    tree.changes.update(changes)
    return Finding(patch, "absent", touched), moved


def _backward(patch: Patch, tree: _Tree, version: str) -> tuple[Finding, int]:
    if not patch.concerns(version):
        return Finding(patch, "not_needed", reason=_not_needed(patch, tree, version)), 0
    try:
        changes, moved = changes_of(patch, tree.read, reverse=True)
    except Unfit as unfit:
        if reason := _not_needed(patch, tree, version):
            return Finding(patch, "not_needed", reason=reason), 0
        return Finding(patch, "conflicting", conflict=unfit.conflict), 0
    touched = _touched(tree.read, changes, reverse=True)
    tree.changes.update(changes)
    return Finding(patch, "applied", touched), moved


def _not_needed(patch: Patch, tree: _Tree, version: str) -> str:
    """Why a source of the release `version` does without a patch; "" if it does not."""
    if not patch.concerns(version):
        return f"it is for vLLM {patch.version}; upstream: {patch.upstream}"
    if patch.superseded(tree.read):
        seen = "; ".join(f"{anchor.file} has {anchor.text!r}" for anchor in patch.unless)
        return f"the source has its own form of it: {seen}; upstream: {patch.upstream}"
    return ""


def _touched(
    read: Read, changes: Mapping[str, bytes | None], *, reverse: bool
) -> tuple[Touched, ...]:
    pairs = ((path, _sha256(read(path)), _sha256(data)) for path, data in sorted(changes.items()))
    return tuple(Touched(p, new, old) if reverse else Touched(p, old, new) for p, old, new in pairs)


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()
