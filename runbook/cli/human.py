"""The same answers for people: terse, plain, one line a step, the reason at the right."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from runbook import units

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


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, key: str) -> str:
    """Colour on a terminal (unless NO_COLOR is set), the text alone elsewhere."""
    colour = COLOURS.get(key)
    if colour is None or not _in_colour(sys.stdout):
        return text
    return f"\033[{colour}m{text}\033[0m"


@functools.cache
def _in_colour(stream: TextIO) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def table(rows: Iterable[Sequence[str]], key: int = 1) -> str:
    """Rows in columns, the last one cut to the terminal's width; column `key` is coloured."""
    rows = [[*row] for row in rows]
    if not rows:
        return ""
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(count - 1)]
    width = _width()
    room = width - sum(widths) - 2 * count if width else 0
    lines = []
    for row in rows:
        cells = [
            paint(cell.ljust(w), row[key].strip()) if i == key else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        last = row[-1]
        if room > 8 and len(last) > room:
            last = last[: room - 1] + "…"
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


def ago(moment: str | None) -> str:
    if not moment:
        return ""
    from datetime import UTC, datetime

    then = datetime.fromisoformat(moment)
    seconds = max(0.0, (datetime.now(UTC) - then).total_seconds())
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h ago"
    return f"{seconds / 86400:.0f} days ago"


def number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def amount(progress: Mapping[str, Any]) -> str:
    """A progress event in words, without its items."""
    done, total, unit = progress["done"], progress["total"], progress["unit"]
    if unit == "bytes":
        text = units.size(done) + (f" of {units.size(total)}" if total else "")
    elif done or total:
        text = number(done) + (f" of {number(total)}" if total else "")
        text += f" {unit}" if unit else ""
    else:
        text = ""
    if total:
        text += f" ({100 * done / total:.0f} %)"
    return ", ".join(said for said in (text, progress["message"]) if said)


def item(one: Mapping[str, Any]) -> str:
    """One of a progress event's items."""
    return f"{one['name']} {100 * one['done'] / max(1, one['total']):.0f} %"


def progress(event: Mapping[str, Any]) -> str:
    """A progress event in words, with the first of its items."""
    items = event.get("items", [])
    more = f" and {len(items) - 1} more" if len(items) > 1 else ""
    first = [item(one) + more for one in items[:1]]
    return ", ".join(said for said in (amount(event), *first) if said)


def reason_text(reasons: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(reason["message"] for reason in reasons)


def error_text(error: Mapping[str, Any]) -> str:
    """The one clear error that every failure ends in."""
    step = f"step {error['step']}: " if error.get("step") else ""
    lines = [f"error: {step}{error['message']}"]
    for label, key in (
        ("where", "where"),
        ("cause", "cause"),
        ("remedy", "remedy"),
        ("log", "log"),
    ):
        if error.get(key):
            value = str(error[key]).strip().replace("\n", "\n          ")
            lines.append(f"  {label + ':':<7} {value}")
    if error.get("retryable"):
        lines.append("  retry:  may help")
    return "\n".join(lines)


def plan(answer: Mapping[str, Any]) -> str:
    rows = []
    for entry in answer["steps"]:
        cost = [units.size(entry["work"]["bytes"])] if entry["work"]["bytes"] else []
        cost += [f"~{units.duration(entry['work']['seconds'])}"] if entry["work"]["seconds"] else []
        if entry["approve"]:
            cost.append("asks for approval")
        rows.append(
            (entry["id"], entry["decision"], ", ".join(cost), reason_text(entry["reasons"]))
        )
    lines = [f"{answer['book']}  {answer['workspace']}", table(rows)]
    work = answer["work"]
    if any(work.values()):
        lines.append(
            f"in all: {units.size(work['bytes'])} to download, {units.size(work['disk'])} of disk"
            + (f", about {units.duration(work['seconds'])}" if work["seconds"] else "")
        )
    return "\n".join(lines)


def status(answer: Mapping[str, Any]) -> str:
    rows = []
    for entry in answer["steps"]:
        detail = ""
        if entry["error"]:
            detail = entry["error"]["message"]
        elif entry["progress"]:
            detail = progress(entry["progress"])
        elif entry["question"]:
            detail = entry["question"]
        elif entry["seconds"]:
            detail = f"took {units.duration(entry['seconds'])}"
        rows.append((entry["id"], entry["state"], ago(entry["since"]), detail))
    lines = [f"{answer['book']}  {answer['workspace']}", table(rows)]
    if answer["run"] is not None:
        lines.append(f"run {answer['run']['id']}: {answer['run']['state']}")
    if answer["endpoint"]:
        lines.append(f"endpoint {answer['endpoint']}")
    failed = [e for e in answer["steps"] if e["error"] and e["state"] != "satisfied"]
    lines += [error_text({**entry["error"], "step": entry["id"]}) for entry in failed]
    return "\n".join(lines)


def logs(answer: Mapping[str, Any]) -> str:
    known = [error_text(answer["diagnosis"])] if answer["diagnosis"] is not None else []
    return "\n".join([*answer["lines"], *known])


def undone(answer: Mapping[str, Any]) -> str:
    if not answer["steps"]:
        return "nothing to undo"
    return table([(entry["id"], entry["state"], entry["decision"]) for entry in answer["steps"]])


def event(item: Mapping[str, Any]) -> str:
    """One event as a line."""
    skip = {"seq", "time", "type", "step", "attempt"}
    what = f"{item['type']:<18} {item.get('step', ''):<10}"
    if item["type"] == "attempt.progress":
        rest = progress(item)
    elif item["type"] == "attempt.notice":
        rest = item["message"]
    elif item.get("error"):
        rest = item["error"]["message"]
    elif item.get("reasons"):
        rest = f"{item.get('decision', '')}: {reason_text(item['reasons'])}"
    else:
        rest = " ".join(
            f"{k}={v}" for k, v in item.items() if k not in skip and v not in ("", None)
        )
    return f"{item['seq']:>5}  {item['time']}  {what}  {rest}".rstrip()
