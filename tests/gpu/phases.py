"""When each phase of a start of vLLM began, from its log: `python phases.py LOG`, by a Python that
has runbook."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from datetime import datetime

from runbook.steps.common.starting.log import Reader

STAMP = re.compile(r"\b(\d\d-\d\d \d\d:\d\d:\d\d) \[")


def phases(lines: Iterable[str]) -> list[tuple[str, float]]:
    """(phase, seconds after the first line with a time), as far as the log goes."""
    reader = Reader()
    first: datetime | None = None
    now = 0.0
    found: dict[str, float] = {}
    for line in lines:
        if (stamp := STAMP.search(line)) is not None:
            # The log names no year; 2000 has every day.
            at = datetime.strptime(f"2000-{stamp[1]}", "%Y-%m-%d %H:%M:%S")
            first = first or at
            now = (at - first).total_seconds()
        if (told := reader.feed(line.rstrip("\n"))) is not None:
            found.setdefault(told.phase, now)
    return list(found.items())


if __name__ == "__main__":
    with open(sys.argv[1], errors="replace") as log:
        print(json.dumps(phases(log), indent=1))
