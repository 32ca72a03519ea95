"""What a hub or a record on disk says is data: each field is looked at before it is used.

Every function gives the value back or raises Malformed, which names the field and what it was.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from runbook.protocol import StepFailure
from runbook.steps.common.hub.listing import Digest, Entry, Listing

RESERVED = ".runbook-"
"""Our own names in a destination begin like this."""
LARGEST = 1 << 50
"""Bytes; no file system here holds a larger file."""
LONGEST_NAME = 255
"""Bytes of one name, NAME_MAX of Linux's file systems."""
LONGEST_PATH = 3000
"""Bytes of a path, so that with the destination it stays below PATH_MAX, 4096."""
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"  # with those of direction
)
COMMIT = re.compile(r"[0-9a-f]{40}")
_OID = {"sha256": re.compile(r"[0-9a-f]{64}"), "git-sha1": COMMIT}


class Malformed(ValueError):
    """A field that is not what it has to be."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field} is {shown(value)}, not {expected}")


def shown(value: object) -> str:
    """A value of any type and length for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def plain(name: str) -> str:
    """A name for a message: as it is where that can be read."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)


def bad_answer(who: str, error: Malformed) -> StepFailure:
    """The failure that a malformed answer of `who` is."""
    return StepFailure(
        f"{who} sends what cannot be used: {error}",
        code="bad_answer",
        cause="it is no hub, or a proxy in between alters its answers",
        remedy="choose another `endpoint` or repository",
    )


def mapping(value: object, field: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise Malformed(field, value, "an object")


def number(value: object, field: str, most: int = LARGEST) -> int:
    if type(value) is int and 0 <= value <= most:
        return value
    raise Malformed(field, value, f"a number from 0 to {most}")


def text(value: object, field: str) -> str:
    """Text that can be printed and written: no control characters, no halves of surrogates."""
    if isinstance(value, str) and not _UNPRINTABLE.search(value):
        return value
    raise Malformed(field, value, "printable text")


def commit(value: object, field: str) -> str:
    if isinstance(value, str) and COMMIT.fullmatch(value):
        return value
    raise Malformed(field, value, "a commit of 40 hex digits")


def digest(algorithm: str, value: object, field: str) -> Digest:
    if isinstance(value, str) and algorithm in _OID and _OID[algorithm].fullmatch(value):
        return Digest(algorithm, value)
    raise Malformed(field, value, f"a {algorithm}")


def path(value: object, field: str = "path") -> str:
    """A path below the destination, which names one file there and none of ours."""
    given = text(value, field)
    parts = given.split("/")
    if not given or any(part in ("", ".", "..") for part in parts):
        raise Malformed(field, value, "a path below the destination")
    if any(part.startswith(RESERVED) for part in parts):
        raise Malformed(field, value, f"a name that may be written: {RESERVED}* is ours")
    longest = max(len(part.encode()) for part in parts)
    if longest > LONGEST_NAME or len(given.encode()) > LONGEST_PATH:
        raise Malformed(field, value, "a name that a file system takes")
    return given


def entry(value: object) -> tuple[str, str, Any]:
    """Type, path and the whole of one entry of a listing, of which no more is known yet."""
    found = mapping(value, "an entry of the listing")
    return text(found.get("type"), "`type`"), text(found.get("path"), "`path`"), found


def file(found: dict[str, Any]) -> Entry:
    """A file of a listing."""
    name = path(found.get("path"), "`path`")
    lfs = found.get("lfs")
    if lfs is None:
        oid = digest("git-sha1", found.get("oid"), f"`oid` of {name}")
        return Entry(name, number(found.get("size"), f"`size` of {name}"), oid)
    large = mapping(lfs, f"`lfs` of {name}")
    oid = digest("sha256", large.get("oid"), f"`lfs.oid` of {name}")
    return Entry(name, number(large.get("size"), f"`lfs.size` of {name}"), oid)


def files(found: list[Entry]) -> tuple[Entry, ...]:
    """The files of a whole listing in order: none that is a folder too."""
    paths = {each.path for each in found}
    for each in found:
        for parent in PurePosixPath(each.path).parents:
            if str(parent) in paths:
                raise Malformed("`path`", each.path, f"possible: {parent} is a file")
    return tuple(sorted(found, key=lambda e: e.path))


def listing(value: object) -> Listing:
    """A listing as `Listing.dump` leaves it in a record."""
    data = mapping(value, "the listing")
    entries = []
    for name, described in mapping(data.get("files"), "`files`").items():
        if not isinstance(described, list) or len(described) != 2:
            raise Malformed(f"`files` of {name}", described, "size and digest")
        algorithm, _, oid = text(described[1], "digest").partition(":")
        size = number(described[0], f"size of {name}")
        entries.append(Entry(path(name), size, digest(algorithm, oid, f"digest of {name}")))
    revision = commit(data.get("revision"), "`revision`")
    return Listing(text(data.get("repo"), "`repo`"), revision, tuple(entries))
