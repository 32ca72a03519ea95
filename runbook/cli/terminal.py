"""The terminal: its width, its colours, and the one way by which text gets there."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from runbook.cli.form import by_agent

# Begins each change of colour that is ours: nothing that is printed can know it.
_MARK = f"\x01{os.urandom(8).hex()}"
# What moves the cursor, hides or reorders text; line ends and tabs do not.
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_SPECIAL = re.compile(f"{_MARK}(\\d+);|\\r\\n?|[{_CONTROL}]")
_ESCAPE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|[@-Z\\\\-_])")
_UNSAFE = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def rendered(text: str) -> str:
    """Text as it may reach a terminal: control characters are shown, not obeyed; the colours of
    `paint` are made."""
    return text if text.isprintable() else _SPECIAL.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    if found[1] is not None:
        return f"\033[{found[1]}m"
    if found[0][0] == "\r":
        return "\n"
    return f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}"


def without_escapes(text: str) -> str:
    """Text without the sequences that colour it or move the cursor; of what was overwritten in its
    line, the last."""
    return _ESCAPE.sub("", text).rpartition("\r")[2]


def safe_json(text: str) -> str:
    """JSON text in which what a terminal would obey is escaped."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str, stream: TextIO | None = None, *, flush: bool = False) -> None:
    """Print text, to standard output unless another stream is given. Everything that verbs print
    for people goes this way."""
    stream = stream or sys.stdout
    stream.write(rendered(text) + "\n")  # one write, where print makes two
    if flush:
        stream.flush()


COLOURS = {
    "satisfied": "32",
    "failed": "31",
    "unmet": "31",
    "unknown": "33",
    "blocked": "33",
    "waiting": "33",
    "cancelled": "33",
    "interrupted": "33",
    "orphaned": "33",
    "stopped": "33",
    "retrying": "33",
    "warning": "33",
    "running": "36",
    "run": "36",
}
NARROWEST = 20
"""Columns below which text is not wrapped."""
MOST_LINES = 3
"""Lines of a row's last cell in its column; a longer one begins below, indented by BELOW."""
BELOW = 6


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at a stream: not an agent, which pays for colours and bars."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not by_agent()


def paint(text: str, key: str) -> str:
    """Colour on a terminal (unless NO_COLOR is set), the text alone elsewhere."""
    colour = COLOURS.get(key)
    if colour is None or not _in_colour(sys.stdout):
        return text
    return f"{_MARK}{colour};{text}{_MARK}0;"


@functools.cache
def _in_colour(stream: TextIO) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def table(rows: Iterable[Sequence[str]], key: int = 1) -> str:
    """Rows in columns, the last one wrapped to the terminal's width, or from the next line on where
    it would stand in a narrow column of many lines; column `key` is coloured."""
    rows = [[*row] for row in rows]
    if not rows:
        return ""
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(count - 1)]
    indent = sum(widths) + 2 * count
    lines = []
    for row in rows:
        cells = [
            paint(cell.ljust(w), row[key].strip()) if i == key else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        last = hanging(row[-1], indent)
        if last.count("\n") >= MOST_LINES:
            lines.append(("  " + "  ".join(cells)).rstrip())
            lines.append(" " * BELOW + hanging(row[-1], BELOW))
        else:
            lines.append(("  " + "  ".join([*cells, last])).rstrip())
    return "\n".join(lines)


def _width() -> int:
    """Columns of the terminal; 0 if there is none."""
    return os.get_terminal_size(sys.stdout.fileno()).columns if is_terminal(sys.stdout) else 0


def hanging(text: str, indent: int) -> str:
    """Text that begins at column `indent`, wrapped there to the terminal's width between words."""
    if len(text) <= NARROWEST:  # fits: spares asking the terminal for each of many lines
        return text
    room = _width() - indent
    if room < NARROWEST or len(text) <= room:
        return text
    import textwrap

    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines)
