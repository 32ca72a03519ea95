"""What vLLM's log tells while a server starts: phases and capacities.

The wordings are those of vLLM 0.22 to 0.33; a wording that changes costs a progress line or a
number, never the outcome, which is decided by the process and its endpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from runbook.steps.common.diagnoses.lines import split

BAR = re.compile(r"(?P<what>[A-Z][\w ()/,.-]*?):\s+\d+%.*?\|\s*(?P<done>\d+)/(?P<total>\d+) \[")
"""A tqdm bar: `Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:01<...`."""

PHASES = {
    "processes": "start the processes",
    "load": "load weights",
    "prepare": "prepare weights",
    "load_draft": "load the draft's weights",
    "profile": "profile memory",
    "trial_capture": "capture graphs on trial",
    "kv_cache": "size the KV cache",
    "jit_warmup": "warm up kernels",
    "autotune": "autotune kernels",
    "deep_gemm": "warm up DeepGEMM",
    "capture": "capture graphs",
    "engine": "finish the engine",
    "server": "start the server",
    "first_request": "answer the first request",
    "near_limit": "answer near the context limit",
}
"""The phases of a start in vLLM 0.33.0's order, in words. Graphs are captured twice, first to
measure them, and kernels are warmed up in between; what a start does not print, it skips."""

BARS = {
    "Loading safetensors checkpoint shards": ("load", "shards"),
    "Capturing": ("capture", "graphs"),
    "JIT kernel warmup": ("jit_warmup", "kernels"),
    "Compiling CuTeDSL kernels": ("jit_warmup", "kernels"),
    "DeepGEMM warmup": ("deep_gemm", "kernels"),
    "Tuning": ("autotune", "profiles"),
}
"""The start of a bar's description, and the phase and unit it stands for."""

MARKS = (
    ("Starting to load model", "load"),
    ("Loading model from scratch", "load"),
    ("Loading drafter model", "load_draft"),
    ("Loading weights took", "prepare"),
    ("Model loading took", "profile"),
    ("Capturing model for", "capture"),
    ("Graph capturing finished", "engine"),
    ("Available KV cache memory", "kv_cache"),
    ("KV cache size:", "kv_cache"),
    ("JIT kernel warmup starting", "jit_warmup"),
    ("Warming up ll_bf16 router GEMM", "jit_warmup"),
    ("Warming up DeepSeek V4 sparse MLA", "jit_warmup"),
    ("Autotuning FlashInfer", "autotune"),
    ("Running FlashInfer autotune", "autotune"),
    ("init engine (profile", "server"),
    ("Starting vLLM server on", "server"),
    ("Application startup complete", "first_request"),
)

SPEECHLESS = re.compile(
    r"No available shared memory broadcast block found"
    r"|INFO:\s+\S+:\d+ - \"(?:GET|POST) "
    r"|(?:Engine \d+: )?Avg prompt throughput: 0\.0 tokens/s, "
    r"Avg generation throughput: 0\.0 tokens/s"
)
"""Lines that say nothing of progress: a process waits for another one, which it says every minute
of a healthy start too; someone asked; the engine did nothing."""

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
    """A phase by its key, and how far it is where the log says so."""

    phase: str
    done: float = 0
    total: float | None = None
    unit: str = ""

    @property
    def words(self) -> str:
        return PHASES[self.phase]


@dataclass
class Reader:
    """Follows the log of one start. `feed` takes each line once; attributes say what is known."""

    at: Progress = field(default_factory=lambda: Progress("processes"))
    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    shared_embedding: bool = False
    shared_head: bool = False
    spoken: int = 0
    """Lines that tell of progress, whatever they say."""
    sized: bool = False
    """Whether the KV cache has its size: graphs captured before that are thrown away."""

    def feed(self, line: str) -> Progress | None:
        """Take a line in; the progress it stands for, if any."""
        text = split(0, line).text
        if SPEECHLESS.match(text):
            return None
        self.spoken += 1
        self._facts(text)
        told = self._bar(text) or self._mark(text)
        if told is not None:
            self.at = told
        return told

    def _bar(self, text: str) -> Progress | None:
        bar = BAR.search(text)
        if bar is None:
            return None
        for start, (phase, unit) in BARS.items():
            if bar["what"].startswith(start):
                phase = self._in_order(phase)
                return Progress(phase, int(bar["done"]), int(bar["total"]), unit)
        return None

    def _mark(self, text: str) -> Progress | None:
        now = self.at.phase
        if now == "prepare" and "Initializing model took" in text:
            return Progress("load_draft")
        for mark, phase in MARKS:
            if mark in text:
                self.sized |= "KV cache" in mark
                phase = self._in_order(phase)
                return Progress(phase) if phase != now else None
        return None

    def _in_order(self, phase: str) -> str:
        """The phase that a line stands for, where the same words stand for two."""
        now = self.at.phase
        if phase == "load" and now in ("prepare", "load_draft"):
            return "load_draft"
        if phase == "prepare" and now == "load_draft":
            return now
        if not self.sized and phase == "capture":
            return "trial_capture"
        if not self.sized and phase == "engine":
            return "profile"
        if phase == "profile" and now not in ("load", "prepare", "load_draft"):
            return now  # said by a slower rank
        return phase

    def _facts(self, text: str) -> None:
        if (capacity := CAPACITY.search(text)) is not None:
            self.kv_cache_tokens = int(capacity["tokens"].replace(",", ""))
        if (concurrency := CONCURRENCY.search(text)) is not None:
            self.max_concurrency = float(concurrency["concurrency"])
        self.shared_embedding |= SHARED_EMBEDDING in text
        self.shared_head |= any(mark in text for mark in SHARED_HEAD)

    @property
    def draft_shares(self) -> bool | None:
        """True if the log says that the draft uses the target's embedding and head; None if it
        does not, which proves nothing: the V2 runner shares them without a word."""
        return True if self.shared_embedding and self.shared_head else None
