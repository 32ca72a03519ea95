"""What vLLM's log tells while a server starts: phases, capacities, and why it failed.

The wordings are those of vLLM 0.22 to 0.33; a wording that changes costs a progress line or a
number, never the outcome, which is decided by the process and its endpoint.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TAIL_LINES = 15

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PREFIX = re.compile(
    r"^(?:\((?P<process>[\w .:-]+?)(?: pid=\d+)?\) )?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?)?"
)
"""`(EngineCore pid=812) ERROR 11-23 18:01:02 [core.py:1510] `, each part optional."""

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

WRAPPERS = (
    "Engine core initialization failed",
    "Frontend process failed during engine core initialization",
    "WorkerProc initialization failed",
    "EngineDeadError",
    "EngineCore encountered an issue",
    "Executor failed",
    "cancelled",
    "CancelledError",
)
"""Last lines of tracebacks that only say that another process failed."""

TRACEBACK = "Traceback (most recent call last):"
RAISED = re.compile(
    r"^(?P<error>[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Failure|Dead\w*))\b"
)
COMMAND_LINE_ERROR = re.compile(r"^(?:vllm|api_server\.py|usage)\b.*: error: (?P<message>.*)$")
LAUNCHER_ERROR = re.compile(r"^cannot start .*$")


def split(line: str) -> tuple[str, str]:
    """The process that a line is from (empty if it does not say), and its text."""
    line = COLOUR.sub("", line)
    match = PREFIX.match(line)
    assert match is not None, "each part is optional"
    return match["process"] or "", line[match.end() :]


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
    lines: list[str] = field(default_factory=list)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    def feed(self, line: str) -> Progress | None:
        """Take a line in; the progress it stands for, if any."""
        self.lines.append(line)
        self.tail.append(line)
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

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


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


def root_cause(text: str) -> str | None:
    """The last line of the last traceback that is not merely the echo of another process's
    failure, or the complaint of the command line's parser; None if there is neither.

    A failing engine logs its traceback, prints it again as it ends, and makes its parent fail
    with `Engine core initialization failed. See root cause above`: the reader wants the first.
    """
    inside: set[str] = set()  # processes in a traceback: their lines interleave
    last: list[str] = []
    telling: str | None = None  # the process whose error goes on over the next lines
    for line in text.splitlines():
        process, body = split(line)
        if telling == process and body.startswith(" "):
            last.append(body.strip())
            continue
        telling = None
        if (complaint := COMMAND_LINE_ERROR.match(body)) is not None:
            last = [complaint["message"]]
        elif LAUNCHER_ERROR.match(body):
            last = [body]
        elif body.startswith(TRACEBACK):
            inside.add(process)
        elif process in inside and RAISED.match(body):
            inside.discard(process)
            if not any(wrapper in body for wrapper in WRAPPERS):
                last, telling = [body], process
    return " ".join(last) or None
