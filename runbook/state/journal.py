"""The journal of a run: every event, one JSON object a line. It is the event stream as well."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runbook.redact import Redactor

FILE = "journal.ndjson"
# Events after which the record must survive a power cut.
DURABLE = frozenset(
    {
        "run.started",
        "run.finished",
        "step.satisfied",
        "attempt.started",
        "attempt.failed",
        "attempt.succeeded",
        "undo.started",
        "undo.finished",
        "undo.failed",
    }
)


def now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    moment = time.time()
    second = int(moment)
    return f"{_second(second)}.{int((moment - second) * 1000):03d}Z"


@functools.lru_cache(1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class Journal:
    """Appends events; `seq` rises by one with each. Events before `open` are kept until then,
    so that a run which finds nothing to do leaves no trace."""

    def __init__(self, redactor: Redactor, listener: Callable[[dict[str, Any]], None]) -> None:
        self._redactor = redactor
        self._listener = listener
        self._seq = 0
        self._file: Any = None
        self._waiting: list[dict[str, Any]] = []

    def open(self, run: Path) -> None:
        self._file = open(run / FILE, "ab", buffering=0)  # noqa: SIM115 (kept for the run)
        for event in self._waiting:
            self._write(event)
        self._waiting.clear()

    def append(self, type: str, **fields: Any) -> None:
        self._seq += 1
        event = self._redactor.data({"seq": self._seq, "time": now(), "type": type, **fields})
        if self._file is None:
            self._waiting.append(event)
        else:
            self._write(event)
        self._listener(event)

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        if event["type"] in DURABLE:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read(run: Path, since: int = 0, thin: bool = False) -> Iterator[dict[str, Any]]:
    """The events of a run with a `seq` above `since`. A torn last line is left out.

    `thin` skips progress events cheaply except each step's last ones: enough for a summary.
    """
    try:
        data = (run / FILE).read_bytes()
    except FileNotFoundError:
        return
    lines = data.split(b"\n")
    lines.pop()  # after the last newline: nothing, or a torn line
    skip = max(0, len(lines) - 64) if thin else 0
    for number, line in enumerate(lines):
        if number < skip and b'"type": "attempt.progress"' in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("seq", 0) > since:
            yield event
