"""The log of a server that runs: its lines as they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path


class Tail:
    """The complete lines that were appended to a file since the last look.

    A carriage return ends a line too: progress bars overwrite themselves with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.rest = b""

    def lines(self) -> Iterator[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        self.offset += len(data)
        *whole, self.rest = re.split(rb"\r\n|\r|\n", self.rest + data)
        for line in whole:
            if text := line.decode(errors="replace").rstrip():
                yield text
