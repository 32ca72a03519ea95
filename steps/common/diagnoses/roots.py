"""The first true error of a log, whatever wrote it: Python, compilers, build tools, the kernel.

A failing server prints one cause and many consequences: each process that waited for the one that
failed raises an exception of its own. The cause is the first error that is not such an echo.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from runbook.steps.common.diagnoses.lines import Line, split

TRACEBACK = "Traceback (most recent call last):"
LONGEST_MESSAGE = 12
"""Lines of an exception's message that are taken."""
AROUND = 3
"""Lines of the log that an excerpt shows before and after the error."""
MOST_LINES = 24
"""Lines within which errors that follow each other are shown together."""
FRAMES = 8
"""Lines of a traceback that an excerpt shows, the last ones."""

_RAISED = re.compile(r"^(?P<kind>[A-Za-z_]\w*(?:\.\w+)*)(?:: (?P<message>.*)|:?$)")
_BARE = re.compile(r"(?:Error|Exception|Exit|Interrupt|Failure|Timeout|Dead\w*|Killed)$")
_CAUSED = "The above exception was the direct cause of the following exception:"
_HANDLED = "During handling of the above exception, another exception occurred:"

# Failures that only say that something else failed before.
ECHOES = re.compile(
    r"Engine core initialization failed|failed during engine core initialization"
    r"|WorkerProc initialization failed|EngineDeadError|EngineCore encountered an issue"
    r"|Executor failed|CancelledError|See (?:root cause|stack trace)|Ninja build failed"
    r"|returned non-zero exit status|died with <Signals|collect2: error: ld returned"
    r"|ninja: build stopped|subcommand failed|make(?:\[\d+\])?: \*\*\*|Failed building wheel"
    r"|Failed to build|subprocess-exited-with-error|The build backend returned an error"
    r"|metadata-generation-failed|Configuring incomplete|died unexpectedly|WorkerProc hit an exc"
    r"|failed to start|ChildFailedError|died with signal|^FAILED: |\bwas killed by signal"
    r"|^SystemExit|KeyboardInterrupt|^Exited? with code|exited with code"
)
_LONE = re.compile(
    r"^nvcc (?:fatal|error)\b|^ptxas .*?(?:fatal|error)\b|^\S*cicc\b.*error"
    r"|^\S[^:]*:\d+(?::\d+)?: (?:fatal )?error: |^\S+\(\d+\): (?:catastrophic )?error\b"
    r"|^(?:\S*/)?(?:ld|ld\.\w+|lld): (?:error: )?(?:cannot find|undefined|\S+: undefined|error)"
    r"|: undefined reference to |^(?:g\+\+|gcc|cc1plus|cc1|clang): (?:fatal )?error: "
    r"|^CMake Error\b|^Could NOT find |^/bin/(?:ba|da)?sh: .*not found"
    r"|^Fatal Python error: |^Segmentation fault\b|^Bus error\b|^Killed$|^Aborted\b"
    r"|^terminate called after throwing|^Out of memory: Killed process|oom-kill:|^OOMKilled"
    r"|^\S*(?:NCCL) (?:WARN|ERROR) .*(?:[Ee]rror|[Ff]ailed|failure)"
    r"|^.*\bNCCL WARN\b.*(?:[Ee]rror|[Ff]ailed|failure)|^thread '.*' panicked at"
    r"|^(?:vllm|api_server\.py|usage|pip|uv|hf|git)\b.*: error: |^cannot start "
    r"|^ERROR: (?!.*Exception in ASGI)|^error: |^fatal: |^curl: \(\d+\)|^E: |^OSError: "
    r"|^ *× (?!Failed to build)|^NVRM: Xid|^NVRM: GPU .* has fallen off"
)
_EXIT = re.compile(
    r"(?:exit(?:ed)?(?: with)?(?: code| status)?:? ?|exit status |exit code: |code[ =])"
    r"(?:-(?:4|6|7|8|9|11)|9|13[2-9])\b"
)


@dataclass(frozen=True, slots=True)
class RootError:
    """The error that came first. `first` and `last` count the log's lines from 0."""

    process: str
    kind: str
    """The exception's type as the log names it; empty for what no exception told."""
    message: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.kind else self.message


@dataclass(slots=True)
class _Open:
    """A traceback that is being read."""

    start: int
    indent: int
    level: str
    chained: str = ""


def root_error(text: str) -> RootError | None:
    """The first error of a log that is no echo of another; of a log that has only echoes, the
    first of these; else the first line that is written as an error; None if nothing failed."""
    lines = [split(number, raw) for number, raw in enumerate(text.splitlines())]
    found = [*_exceptions(lines), *_lone(lines)]
    found.sort(key=lambda error: error.first)
    errors = [error for error in found if not ECHOES.search(str(error))]
    killed = [error for error in found if _EXIT.search(str(error))]
    return next(iter(errors or killed or found), None) or next(_told(lines), None)


def excerpt(text: str) -> range:
    """Which lines of a log, counted from 0, show its first error: what came before, the last
    frames, the message; an empty range if nothing failed."""
    error = root_error(text)
    if error is None:
        return range(0)
    lines, last = text.splitlines(), error.last
    begin = max(error.first - AROUND, last - FRAMES - LONGEST_MESSAGE, 0)
    for number in range(last + 1, min(error.first + MOST_LINES, len(lines))):
        if number <= last + AROUND and _LONE.search(split(number, lines[number]).text.strip()):
            last = number  # several errors in a row are shown together
    return range(begin, min(last + AROUND + 1, len(lines)))


def _exceptions(lines: list[Line]) -> Iterator[RootError]:
    """The exceptions of all tracebacks, of each chain the one that tells the cause. Lines of
    processes interleave, so each is followed for itself."""
    reading: dict[str, _Open] = {}
    chain: dict[str, list[RootError]] = {}
    joint: dict[str, str] = {}
    for line in lines:
        body = line.text.strip()
        if body.endswith(TRACEBACK):
            indent = len(line.text) - len(line.text.lstrip())
            if line.process not in joint:
                yield from _root_of(chain.pop(line.process, []))
            reading[line.process] = _Open(line.number, indent, line.level)
            continue
        if body in (_CAUSED, _HANDLED):
            joint[line.process] = body
            continue
        at = reading.get(line.process)
        if at is None or not body or line.text[: at.indent + 1].strip() == "":
            continue  # a frame, or of no traceback
        raised = _RAISED.match(body)
        if raised is None or (raised["message"] is None and not _BARE.search(raised["kind"])):
            continue
        del reading[line.process]
        if at.level in ("DEBUG", "INFO", "WARNING"):
            continue  # told in passing: it was dealt with
        message, last = _message(lines, line, raised["message"] or "")
        error = RootError(line.process, raised["kind"], message, line.number, last)
        before = chain.setdefault(line.process, [])
        if joint.pop(line.process, "") == _HANDLED:
            before.clear()  # raised while another was dealt with: that one was expected
        before.append(error)
    for rest in chain.values():
        yield from _root_of(rest)


def _root_of(chain: list[RootError]) -> Iterator[RootError]:
    yield from chain[:1]


def _message(lines: list[Line], line: Line, first: str) -> tuple[str, int]:
    """An exception's message and its last line: it goes on until the next thing begins."""
    message, last = [first], line.number
    for after in lines[line.number + 1 :]:
        if after.process != line.process:
            if line.process:
                continue  # another process speaks in between
            break
        ends = not after.text.strip() or after.level != line.level or TRACEBACK in after.text
        if ends or len(message) >= LONGEST_MESSAGE or _LONE.search(after.text):
            break
        message.append(after.text.rstrip())
        last = after.number
    return "\n".join(message).strip(), last


def _told(lines: list[Line]) -> Iterator[RootError]:
    """Exceptions that stand alone, without a traceback, and lines at the level of errors."""
    for line in lines:
        if line.level in ("DEBUG", "INFO", "WARNING"):
            continue
        raised = _RAISED.match(line.text.strip())
        if raised is not None and _BARE.search(raised["kind"]):
            message = raised["message"] or ""
            yield RootError(line.process, raised["kind"], message, line.number, line.number)
        elif line.level:
            yield RootError(line.process, "", line.text.strip(), line.number, line.number)


def _lone(lines: list[Line]) -> Iterator[RootError]:
    """Errors that no exception tells, each with the indented lines that belong to it."""
    for line in lines:
        if line.level in ("DEBUG", "INFO", "WARNING"):
            continue
        text = line.text.strip()
        if not _LONE.search(text) and not _EXIT.search(text):
            continue
        message, last = [text], line.number
        for after in lines[line.number + 1 : line.number + LONGEST_MESSAGE]:
            if after.process != line.process or not after.text.startswith((" ", "\t")):
                break
            message.append(after.text.rstrip())
            last = after.number
        yield RootError(line.process, "", "\n".join(message), line.number, last)
