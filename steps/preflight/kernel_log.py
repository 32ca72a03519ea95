"""What the driver told the kernel of its GPUs since the machine was started: Xid errors."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KMSG = Path("/dev/kmsg")
RECORD = 8192
"""Bytes of a record, at most; see the kernel's Documentation/ABI/testing/dev-kmsg."""
XID = re.compile(
    r"NVRM: Xid \(PCI:(?P<bus>[0-9a-f:.]+)\): (?P<number>\d+)(?:, (?P<told>.*))?", re.IGNORECASE
)


class Xid(NamedTuple):
    """An error of a GPU: its bus (`0000:41:00`), its number, the driver's words, seconds ago."""

    bus: str
    number: int
    told: str
    ago: float


def xids(log: Path = KMSG) -> list[Xid]:
    """Those of this boot, the oldest first; none where the log may not be read."""
    found = []
    for record in _records(log):
        head, _, text = record.partition(";")
        told = XID.search(text.partition("\n")[0])
        fields = head.split(",")
        if told is None or len(fields) < 3 or not fields[2].isdigit():
            continue
        ago = time.clock_gettime(time.CLOCK_MONOTONIC) - int(fields[2]) / 1e6
        bus = told["bus"].lower().partition(".")[0]
        found.append(Xid(bus, int(told["number"]), (told["told"] or "").strip(), max(0.0, ago)))
    return found


def _records(log: Path) -> Iterator[str]:
    """Each read of the device gives one record, and an error once there is no further one."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while True:
            try:
                record = os.read(descriptor, RECORD)
            except BrokenPipeError:
                continue  # overwritten while it was read: the next is the oldest there is
            except OSError:
                return  # no more, or not for us
            if not record:
                return
            yield from record.decode(errors="replace").splitlines()
    finally:
        os.close(descriptor)
