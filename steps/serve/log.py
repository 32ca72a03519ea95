"""What vLLM's log tells while a server starts: phases and capacities.

The wordings are those of vLLM 0.22 to 0.33; a wording that changes costs a progress line or a
number, never the outcome, which is decided by the process and its endpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runbook.steps.common.server_log import split

BAR = re.compile(r"(?P<what>[A-Z][\w ()/,.-]*?):\s+\d+%.*?\|\s*(?P<done>\d+)/(?P<total>\d+) \[")
"""A tqdm bar: `Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:01<...`."""

BARS = {
    "Loading safetensors checkpoint shards": ("load weights", "shards"),
    "Capturing": ("capture graphs", "graphs"),
}
"""The start of a bar's description, and the phase and unit it stands for."""

PHASES = (
    ("Starting to load model", "load weights"),
    ("Loading weights took", "prepare weights"),
    ("Available KV cache memory", "set up the KV cache"),
    ("KV cache size:", "warm up the engine"),
    ("Graph capturing finished", "warm up the engine"),
    ("init engine (profile", "start the server"),
    ("Starting vLLM server on", "start the server"),
    ("Application startup complete", "answer the first request"),
)

CAPACITY = re.compile(
    r"KV cache size: (?P<tokens>[\d,]+) tokens"
    r"(?:.*?Maximum concurrency for [\d,]+ tokens per request: (?P<concurrency>[\d.]+)x)?"
)
CONCURRENCY = re.compile(
    r"Maximum concurrency for [\d,]+ tokens per request: (?P<concurrency>[\d.]+)x"
)
SHARED_EMBEDDING = "Sharing target model embedding weights with the draft model"
SHARED_HEAD = (
    "Shared target model lm_head with MTP shared_head.head",
    "Sharing target model lm_head weights with the draft model",
)


@dataclass(frozen=True, slots=True)
class Progress:
    phase: str
    done: float = 0
    total: float | None = None
    unit: str = ""


@dataclass
class Reader:
    """Follows the log of one start. `feed` takes each line once; attributes say what is known."""

    phase: str = "start the processes"
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    shared_embedding: bool = False
    shared_head: bool = False

    def feed(self, line: str) -> Progress | None:
        """Take a line in; the progress it stands for, if any."""
        _, text = split(line)
        self._facts(text)
        if (bar := BAR.search(text)) is not None:
            for start, (phase, unit) in BARS.items():
                if bar["what"].startswith(start):
                    self.phase = phase
                    return Progress(phase, int(bar["done"]), int(bar["total"]), unit)
        for mark, phase in PHASES:
            if mark in text:
                self.phase = phase
                return Progress(phase)
        return None

    def _facts(self, text: str) -> None:
        if (capacity := CAPACITY.search(text)) is not None:
            self.kv_cache_tokens = int(capacity["tokens"].replace(",", ""))
        if (concurrency := CONCURRENCY.search(text)) is not None:
            self.max_concurrency = float(concurrency["concurrency"])
        self.shared_embedding |= SHARED_EMBEDDING in text
        self.shared_head |= any(mark in text for mark in SHARED_HEAD)
