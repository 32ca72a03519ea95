"""Results of benchmarks, kept in the workspace: JSON lines, what they are of, then each repetition
and each point as soon as it is known. A file that was cut off holds what was measured till then."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from runbook.errors import USAGE
from runbook.protocol import StepFailure

FOLDER = "bench"


class Writer:
    """Appends entries to a new file of the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        stem, number = f"{stamp}-{name}", 1
        while True:
            self.path = folder / (f"{stem}.jsonl" if number == 1 else f"{stem}-{number}.jsonl")
            try:
                self._file: IO[str] = self.path.open("x")
                break
            except FileExistsError:
                number += 1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


@dataclass(frozen=True, slots=True)
class Result:
    """A stored result."""

    path: Path
    about: dict[str, Any]
    points: list[dict[str, Any]]


def named(folder: Path, name: str) -> Path:
    """The file of a result: a path, or a name in the folder."""
    path = Path(name)
    return path if path.exists() else folder / name


def load(path: Path) -> Result:
    """Raises StepFailure if it is no result."""
    about: dict[str, Any] = {}
    points = []
    try:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["kind"] == "about":
                about = entry
            elif entry["kind"] == "point":
                points.append(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_result(path, f"{type(error).__name__}: {error}") from error
    if not points:
        raise _no_result(path, "no point of it was measured to its end")
    return Result(path, about, points)


def stored(folder: Path) -> list[Path]:
    """All files of results, the oldest first."""
    return sorted(folder.glob("*.jsonl"))


def _no_result(path: Path, cause: str) -> StepFailure:
    return StepFailure(
        f"{path} is no result of a benchmark",
        code="no_result",
        exit_code=USAGE,
        cause=cause,
        remedy="name a file that `runbook bench` has written",
        where=str(path),
    )
