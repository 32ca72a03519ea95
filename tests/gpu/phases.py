"""When each phase of a start of vLLM 0.33.0 began, from its log: `python phases.py LOG`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from datetime import datetime

MARKS = (
    ("configured", r"non-default args"),
    ("engine", r"Initializing a V1 LLM engine"),
    ("loading", r"Loading model from scratch|Starting to load model"),
    ("loaded", r"Model loading took"),
    ("captured once", r"Graph capturing finished"),
    ("cache sized", r"GPU KV cache size"),
    ("jit warm-up", r"JIT kernel warmup starting"),
    ("jit warm-up done", r"JIT kernel warmup finished"),
    ("attention warm-up", r"Warming up DeepSeek V4 sparse MLA attention"),
    ("autotune", r"Running FlashInfer autotune|Autotuning FlashInfer"),
    ("engine ready", r"init engine \(profile"),
    ("listening", r"Starting vLLM server on"),
)
"""In the order of a start, the first line of each counts. `engine ready` follows the capture that
is kept: the first one is for profiling."""
STAMP = re.compile(r"\b(\d\d-\d\d \d\d:\d\d:\d\d) \[")


def phases(lines: Iterable[str]) -> list[tuple[str, float]]:
    """(phase, seconds after the first line with a time), as far as the log goes."""
    first: datetime | None = None
    found: dict[str, float] = {}
    for line in lines:
        stamp = STAMP.search(line)
        if stamp is None:
            continue
        # The log names no year; 2000 has every day.
        at = datetime.strptime(f"2000-{stamp[1]}", "%Y-%m-%d %H:%M:%S")
        first = first or at
        for name, pattern in MARKS:
            if name not in found and re.search(pattern, line):
                found[name] = (at - first).total_seconds()
    return list(found.items())


if __name__ == "__main__":
    with open(sys.argv[1], errors="replace") as log:
        print(json.dumps(phases(log), indent=1))
