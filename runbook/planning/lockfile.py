"""The lock of a book: what names that move, as a branch does, were when they were resolved.

It lies beside the document, `corpus.lock.json` of `corpus.yaml`, and goes where that goes, so that
every machine takes the same. That of a document which can have none there (a shipped book, a folder
that may not be written) lies in the workspace. A name that it has is never resolved anew but by
`runbook lock --upgrade`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runbook.errors import PRECONDITION, USAGE
from runbook.files import make_folder, read_regular, write_json
from runbook.protocol import StepFailure
from runbook.remedy import Remedy

SUFFIX = ".lock.json"
IN_WORKSPACE = "runbook.lock.json"
LARGEST = 1 << 20
VALUE = re.compile(r"[0-9a-f]{40,128}")
"""A commit or a digest: what a name was must itself not move."""
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
REMEDY = Remedy("lock", text="restore it; or remove it, and {command} makes it anew")


def places(source: str, shipped: bool, workspace: Path) -> tuple[Path, ...]:
    """Where the lock of a document lies: the first place that may be written, read in order."""
    document = Path(source)
    own = () if shipped or not document.is_file() else (document.with_suffix(SUFFIX),)
    return (*own, workspace / IN_WORKSPACE)


def require_values(values: Mapping[str, Any]) -> None:
    """Raise unless each is a commit or a digest."""
    for name, value in values.items():
        if not isinstance(value, str) or not VALUE.fullmatch(value):
            raise StepFailure(
                f"{name[:200]} resolved to {value!r:.100}, which is no commit and no digest",
                code="lock_value",
                remedy="this is a defect of the step",
            )


class Lockfile:
    """Reads at every call: a lock is small, and another process may add to it."""

    def __init__(self, *places: Path) -> None:
        self.places = places

    def get(self, name: str) -> str | None:
        """What a name was; None if the lock does not have it."""
        return self._find(name)[1]

    def where(self, name: str) -> Path:
        """The file that has it, or would."""
        return self._find(name)[0] or self.places[0]

    def keep(self, name: str, value: str) -> None:
        """Add what a name is, if the lock does not have it yet."""
        if self.get(name) is None:
            self.put({name: value})

    def verify(self) -> None:
        """Raise if a file of it is none."""
        for place in self.places:
            _read(place)

    def put(self, values: Mapping[str, str]) -> Path:
        """Write what names are, over what they were; the file it is written to."""
        for place in self.places:
            try:
                if place is self.places[-1]:
                    make_folder(place.parent)
                with _alone(place.parent):
                    held = _read(place)
                    if held.items() >= values.items():
                        return place
                    names = dict(sorted({**held, **values}.items()))
                    write_json(place, {"runbook": 1, "lock": names})
                return place
            except OSError as error:
                hidden = _read(place).keys() & values.keys()  # a later place is not read for them
                if place is self.places[-1] or hidden or error.errno not in UNWRITABLE:
                    raise StepFailure(
                        f"the lock {place} cannot be written",
                        code="lock_not_written",
                        exit_code=PRECONDITION,
                        cause=error.strerror or str(error),
                        remedy="let its folder be written, or put the document where it may be",
                    ) from error
        raise AssertionError

    def _find(self, name: str) -> tuple[Path | None, str | None]:
        for place in self.places:
            if (value := _read(place).get(name)) is not None:
                return place, value
        return None, None


def _read(place: Path) -> dict[str, str]:
    """The names of a file; raises for one that is no lock."""
    there = os.path.lexists(place)  # before, since another may write it meanwhile
    data = read_regular(place, LARGEST)
    if data is None:
        if not (there and os.path.lexists(place)):
            return {}
        raise _invalid(place, "it is no file that can be read, or larger than 1 MiB")
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = f"{place}:{error.lineno}:{error.colno}"
        raise _invalid(where, f"it is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(place, str(error)) from error
    if not isinstance(found, dict) or found.keys() != {"runbook", "lock"}:
        raise _invalid(place, "it has not the keys `runbook` and `lock`, and these alone")
    if found["runbook"] != 1 or isinstance(found["runbook"], bool):
        raise _invalid(place, "`runbook` is not 1: a newer runbook wrote it")
    names = found["lock"]
    if not isinstance(names, dict):
        raise _invalid(place, "`lock` is not a mapping of names")
    for name, value in names.items():
        if not isinstance(value, str) or not VALUE.fullmatch(value):
            raise _invalid(place, f"{name[:200]!r} is {value!r:.100}, not a commit or a digest")
    return names


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _invalid(where: Path | str, cause: str) -> StepFailure:
    return StepFailure(
        "the book's lock is of the wrong form",
        code="lock_invalid",
        exit_code=USAGE,
        cause=cause,
        remedy=REMEDY,
        where=str(where),
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time, where the file system can tell: of two steps side by side none is to
    lose what it adds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(descriptor)
