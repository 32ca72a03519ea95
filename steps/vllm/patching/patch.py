"""One patch of a series: YAML front matter and a unified diff."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.steps.vllm.patching.diff import FileDiff
from runbook.steps.vllm.patching.parser import parse, safe_path

Read = Callable[[str], bytes | None]
"""The content of a path relative to the root of the source, None where there is no such file."""

UNKNOWN = "not reported"
_KEYS = {"id", "title", "why", "symptom", "upstream", "applies"}
_TEXTS = ("id", "title", "why", "symptom", "upstream")


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

    def concerns(self, version: str) -> bool:
        """Whether it is for a release; the local part of the version does not count."""
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version

        public = Version(Version(version).public)
        return SpecifierSet(self.version).contains(public, prereleases=True)

    def superseded(self, read: Read) -> bool:
        """Whether a source has its own form of the change."""
        return bool(self.unless) and all(anchor.holds(read) for anchor in self.unless)


def read_patch(path: Path) -> Patch:
    """Read a patch file; raises OSError and ValueError (also as `DiffError`)."""
    import yaml

    data = path.read_bytes()
    parts = re.match(rb"---\n(.*?\n)---\n", data, re.DOTALL)
    if parts is None:
        raise ValueError("expected front matter between two lines `---`")
    try:
        header = yaml.safe_load(parts[1])
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"front matter: {error}") from error
    body = data[parts.end() :]
    return _patch(path.name, header, body, data[: parts.end()].count(b"\n") + 1)


def _patch(name: str, header: Any, body: bytes, first_line: int) -> Patch:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    need_keys(header, _KEYS, "front matter")
    for key in _TEXTS:
        if not isinstance(header[key], str) or not header[key].strip():
            raise ValueError(f"front matter: `{key}` must be a text")
    if not re.fullmatch(r"[a-z0-9-]+", header["id"]):
        raise ValueError("front matter: `id` must be lower case letters, digits and hyphens")
    applies = header["applies"]
    need_keys(applies, {"version", "anchors"}, "applies", {"unless"})
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


def need_keys(value: Any, required: set[str], where: str, optional: Collection[str] = ()) -> None:
    """Raises ValueError unless `value` is a mapping with just these keys."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected keys and values")
    if missing := required - value.keys():
        raise ValueError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := value.keys() - required - set(optional):
        raise ValueError(f"{where}: unknown {', '.join(sorted(map(str, unknown)))}")


def _anchors(value: Any, where: str) -> tuple[Anchor, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list")
    found = []
    for item in value:
        need_keys(item, {"file", "text"}, where)
        if not (isinstance(item["file"], str) and isinstance(item["text"], str) and item["text"]):
            raise ValueError(f"{where}: `file` and `text` must be texts")
        found.append(Anchor(safe_path(item["file"]), item["text"]))
    return tuple(found)
