"""The journal of a run: every event, one JSON object a line. It is the event stream as well."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runbook.files import encode, parse, read_regular
from runbook.redact import Redactor
from runbook.state.records import is_event

FILE = "journal.ndjson"
LARGEST_EVENT = 1 << 20
LARGEST = 256 << 20
"""Bytes of a journal that are read, its last ones: a year of progress events."""
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
    so that a run which finds nothing to do leaves no trace. A disk that refuses is an error once;
    what ends the run then is told to the listener alone."""

    def __init__(self, redactor: Redactor, listener: Callable[[dict[str, Any]], None]) -> None:
        self._redactor = redactor
        self._listener = listener
        self._seq = 0
        self._file: Any = None
        self._refused = False
        self._waiting: list[dict[str, Any]] = []

    def open(self, run: Path) -> None:
        self._file = open(run / FILE, "ab", buffering=0)  # noqa: SIM115 (kept for the run)
        for event in self._waiting:
            self._write(event)
        self._waiting.clear()

    def append(self, type: str, ours: bool = False, /, **fields: Any) -> None:
        """`ours`: in its fields are ids and words of the engine alone, which hold no login."""
        self._seq += 1
        event = {"seq": self._seq, "time": now(), "type": type, **fields}
        if not ours or self._redactor.knows:
            event = self._redactor.data(event)
        if self._file is None:
            self._waiting.append(event)
        else:
            self._write(event)
        self._listener(event)

    def _write(self, event: dict[str, Any]) -> None:
        if self._refused:
            return
        data = encode(event) + b"\n"
        try:
            while data:
                data = data[self._file.write(data) :]
            if event["type"] in DURABLE:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._refused = True
            error.filename = error.filename or self._file.name
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def end(run: Path) -> dict[str, Any] | None:
    """The `run.finished` of a run, its last event; None if it has not come to its end."""
    lines = (read_regular(run / FILE, LARGEST_EVENT, tail=True) or b"").split(b"\n")
    event: dict[str, Any] | None = parse(lines[-2]) if len(lines) > 1 else None
    if event is None or not is_event(event) or event["type"] != "run.finished":
        return None
    return event


def read(run: Path, since: int = 0, thin: bool = False) -> Iterator[dict[str, Any]]:
    """The events of a run with a `seq` above `since`. What is no event is left out.

    `thin` skips progress events cheaply except each step's last ones: enough for a summary.
    """
    data = read_regular(run / FILE, LARGEST, tail=True)
    if data is None:
        return
    lines = data.split(b"\n")
    lines.pop()  # after the last newline: nothing, or a torn line
    skip = max(0, len(lines) - 64) if thin else 0
    for number, line in enumerate(lines):
        if number < skip and b'"type":"attempt.progress"' in line:
            continue
        event = parse(line)
        if is_event(event) and event["seq"] > since:
            yield event
