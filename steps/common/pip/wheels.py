"""Hash-pinned requirements, and wheels kept by their digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runbook.protocol import StepFailure

# One pin as `env/relock.py` writes it; the size is for progress and plans only.
PIN = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)[ \\\n]+"
    r"--hash=sha256:(?P<sha256>[0-9a-f]{64})(?:[ \t]+# (?P<bytes>\d+) bytes)?\s*"
)
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel: exactly one file, known by its SHA-256. `bytes` is 0 if not recorded."""

    name: str
    version: str
    sha256: str
    bytes: int

    @property
    def dist_info(self) -> str:
        """The name of its metadata folder (binary distribution format, "escaping")."""
        return f"{re.sub(r'[-_.]+', '_', self.name).lower()}-{self.version}.dist-info"

    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def read_requirements(path: Path) -> list[Wheel]:
    """The pins of a requirements file in the form that `env/relock.py` writes.

    Raises `StepFailure` for anything that is not a pin with exactly one SHA-256.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise StepFailure(
            f"cannot read the lock {path}",
            code="lock_unreadable",
            cause=str(error),
            remedy="correct `lock`, or leave it out to use the shipped one",
        ) from error
    text = re.sub(r"^\s*(#.*)?\n", "", text, flags=re.MULTILINE)
    wheels, at = [], 0
    while at < len(text):
        match = PIN.match(text, at)
        if match is None:
            raise StepFailure(
                f"{path} is not a list of hash-pinned wheels",
                code="lock_malformed",
                cause=f"expected `name==version --hash=sha256:...`, found "
                f"`{text[at:].splitlines()[0][:100]}`",
                remedy="write it with `make lock`",
            )
        wheels.append(
            Wheel(match["name"], match["version"], match["sha256"], int(match["bytes"] or 0))
        )
        at = match.end()
    return wheels


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class WheelCache:
    """Wheels in `<root>/<sha256>/<file name>`, put there whole, by rename."""

    root: Path

    def find(self, wheel: Wheel) -> Path | None:
        """The wheel if it is here and still has its digest; one that lost it is removed."""
        for path in (self.root / wheel.sha256).glob("*.whl"):
            if sha256_of(path) == wheel.sha256:
                return path
            path.unlink()
        return None

    def adopt(self, folder: Path, wanted: Iterable[Wheel]) -> None:
        """Take the complete wheels among `wanted` out of a download folder of any layout.

        `folder` must be on the file system of the cache. Files without a wanted digest (a
        download that was cut off) stay where they are.
        """
        digests = {wheel.sha256 for wheel in wanted}
        for path in sorted(folder.rglob("*.whl")):
            digest = sha256_of(path)
            if digest in digests:
                target = self.root / digest / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
