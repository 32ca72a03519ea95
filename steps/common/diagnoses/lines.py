"""Lines of logs without what loggers, launchers and build tools put before them."""

from __future__ import annotations

import re
from typing import NamedTuple

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
# What containers, journals and log collectors put before a line of the program itself.
_OUTER = re.compile(
    r"^(?:[\w.-]+-\d+ +\| )?"  # docker compose: `vllm-1  | `
    r"(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)? (?!\[))?"
    r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]+ [\w.@/-]+\[\d+\]: )?"  # syslog, journalctl
)
_PROCESS = re.compile(r"^\((?P<name>[\w .:=-]+?)(?: pid=\d+)?\) ")
_RANK = re.compile(r"^\[(?P<name>rank\d+)\]: ?")
_LEVEL = re.compile(
    r"^(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? "
    r"\[(?P<place>[^\]]+)\] ?"
)


class Line(NamedTuple):
    """One line of a log. `number` counts from 0; `process` is empty if the line does not say."""

    number: int
    process: str
    level: str
    text: str


def split(number: int, raw: str) -> Line:
    """The parts of a line: `(EngineCore pid=812) ERROR 11-23 18:01:02 [core.py:1510] text`, each
    part optional, also behind what `docker compose logs` or `journalctl` put before it."""
    text = _CONTROL.sub("", raw)
    text = text[_end(_OUTER, text) :]
    process = level = ""
    for pattern in (_PROCESS, _RANK):
        if (match := pattern.match(text)) is not None:
            process, text = match["name"], text[match.end() :]
            break
    if (match := _LEVEL.match(text)) is not None:
        level, text = match["level"], text[match.end() :]
    return Line(number, process, level, text)


_PASSING = re.compile(
    r"^(?:\([^)\n]*\) |\[rank\d+\]: ?)?(?:DEBUG|INFO|WARNING) \d\d-\d\d .*$", re.MULTILINE
)


def without_passing(text: str) -> str:
    """A log of the same lines, those emptied that were written in passing: at a level below
    error."""
    return _PASSING.sub("", text)


def _end(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match is not None else 0
