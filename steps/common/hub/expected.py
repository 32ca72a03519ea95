"""Whether files are those that a book was made for: by digests that it names itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from runbook.protocol import StepFailure
from runbook.steps.common.hub.listing import Listing

Digests = Mapping[str, str]
"""SHA-256 by path."""


def of_listing(listing: Listing, wanted: Digests) -> None:
    """What can be told before a byte is downloaded. Raises StepFailure."""
    listed = {entry.path: entry.digest for entry in listing.entries}
    wrong = [f"{path} is not among its files" for path in wanted if path not in listed]
    for path, sha256 in wanted.items():
        digest = listed.get(path)
        if digest is not None and digest.algorithm == "sha256" and digest.value != sha256:
            wrong.append(_differs(path, digest.value, sha256))
    _refuse(listing, wrong)


def of_files(folder: Path, listing: Listing, wanted: Digests) -> None:
    """Those whose digest the hub does not list as SHA-256: the small ones. Raises StepFailure."""
    wrong = []
    for entry in listing.entries:
        sha256 = wanted.get(entry.path)
        if sha256 is None or entry.digest.algorithm == "sha256":
            continue
        with (folder / entry.path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            wrong.append(_differs(entry.path, found, sha256))
    _refuse(listing, wrong)


def _differs(path: str, found: str, wanted: str) -> str:
    return f"{path} has sha256 {found}, expected {wanted}"


def _refuse(listing: Listing, wrong: list[str]) -> None:
    if wrong:
        raise StepFailure(
            f"{listing.repo} at {listing.revision} is not what the book was made for: {wrong[0]}",
            code="other_content",
            cause="\n".join(wrong),
            remedy="give the revision that the book names, or the digests of this one as `sha256`",
        )
