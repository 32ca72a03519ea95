"""The folder of unfinished files beside the files: `.runbook-parts/`.

```
.runbook-parts/<key>.part    the bytes; key: of the file's path
.runbook-parts/<key>.json    what of it can be trusted: the sidecar
.runbook-parts/journal.ndjson    whole files since the record was written (inventory.py)
```
Nothing else in it, and no file elsewhere, is ours because of its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runbook.steps.common.hub.listing import Entry
from runbook.steps.common.hub.spans import Spans
from runbook.steps.common.stamp import read_record

FOLDER = ".runbook-parts"
FORMAT = "runbook-part/1"


def key(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:32]


def paths(folder: Path, path: str) -> tuple[Path, Path]:
    """A file on its way, and its sidecar."""
    stem = f"{folder}/{FOLDER}/{key(path)}"
    return Path(f"{stem}.part"), Path(f"{stem}.json")


def discard(folder: Path, path: str) -> None:
    """Remove what was on its way."""
    for each in paths(folder, path):
        each.unlink(missing_ok=True)


def leftovers(folder: Path) -> Iterator[Path]:
    """Our unfinished files, by our names for them."""
    if (folder / FOLDER).is_dir():
        for path in sorted((folder / FOLDER).iterdir()):
            stem, _, kind = path.name.lstrip(".").partition(".")
            hexadecimal = len(stem) == 32 and not stem.strip("0123456789abcdef")
            if hexadecimal and kind.split(".")[0] in ("part", "json", "link"):
                yield path


def trusted_bytes(folder: Path, entry: Entry) -> int:
    """How many bytes of an unfinished file need not be fetched again."""
    data = sidecar(paths(folder, entry.path)[1], entry)
    return Spans((start, stop) for start, stop in data["spans"]).total if data else 0


def sidecar(path: Path, entry: Entry) -> dict[str, Any] | None:
    """What a sidecar says of a file; None if it is no sidecar, or one of other content."""
    data = read_record(path)
    if data is None or data.get("format") != FORMAT:
        return None
    if (data.get("digest"), data.get("size")) != (str(entry.digest), entry.size):
        return None
    spans, validators = data.get("spans"), data.get("validators")
    hashed = data.get("hashed", 0)
    if (
        not isinstance(spans, list)
        or not all(map(is_span, spans))
        or any(stop > entry.size for _, stop in spans)
        or not isinstance(validators, dict)
        or not all(isinstance(value, str) for value in validators.values())
        or type(data.get("passes")) is not int
        or data["passes"] < 1
        or type(hashed) is not int
        or not 0 <= hashed <= Spans((start, stop) for start, stop in spans).end_of(0)
        or ("state" in data and not ("hashed" in data and isinstance(data["state"], str)))
    ):
        return None
    return data


def is_span(value: object) -> bool:
    return (
        isinstance(value, list)
        and [type(position) for position in value] == [int, int]
        and 0 <= value[0] < value[1]
    )
