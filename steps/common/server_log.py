"""The log of a server: its lines as they come, and the error among them that explains its end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PREFIX = re.compile(
    r"^(?:\((?P<process>[\w .:-]+?)(?: pid=\d+)?\) )?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?)?"
)
"""`(EngineCore pid=812) ERROR 11-23 18:01:02 [core.py:1510] `, each part optional."""

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
