"""Hash-pinned wheels, as `env/relock.py` writes them: one file for each package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runbook.protocol import StepFailure

# The size is for progress and plans only.
_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9._+!]+)[ \\\n]+"
    r"--hash=sha256:(?P<sha256>[0-9a-f]{64})(?:[ \t]+# (?P<bytes>\d+) bytes)?\s*"
)


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned wheel: exactly one file, known by its SHA-256. `bytes` is 0 if not recorded."""

    name: str
    version: str
    sha256: str
    bytes: int

    @property
    def dist_info(self) -> str:
        """The name of its metadata folder (binary distribution format, "escaping")."""
        from packaging.utils import canonicalize_name

        return f"{canonicalize_name(self.name).replace('-', '_')}-{self.version}.dist-info"

    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def read_lock(path: Path) -> str:
    """The text of a lock that a book may name. Raises `StepFailure` if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StepFailure(
            f"cannot read the lock {path}",
            code="lock_unreadable",
            cause=str(error),
            remedy="correct `lock`, or leave it out to use the shipped one",
        ) from error


def read_pins(path: Path) -> list[Pin]:
    """The pins of a requirements file in the form that `env/relock.py` writes.

    Raises `StepFailure` for anything that is not a pin with exactly one SHA-256.
    """
    text = re.sub(r"^\s*(#.*)?\n", "", read_lock(path), flags=re.MULTILINE)
    pins, at = [], 0
    while at < len(text):
        match = _PIN.match(text, at)
        if match is None:
            raise StepFailure(
                f"{path} is not a list of hash-pinned wheels",
                code="lock_malformed",
                cause=f"expected `name==version --hash=sha256:...`, found "
                f"`{text[at:].splitlines()[0][:100]}`",
                remedy="write it with `make lock` in the repository of runbook",
            )
        pins.append(Pin(match["name"], match["version"], match["sha256"], int(match["bytes"] or 0)))
        at = match.end()
    return pins
