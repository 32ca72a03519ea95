"""What a terminal shows below the lines of a run: one line for each attempt that works now."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import Progress, Task
from rich.text import Text

from runbook import units
from runbook.cli import human, terminal
from runbook.cli.progress import Lines
from runbook.files import read_regular

ITEMS = 8
"""Items of one attempt that are shown at most."""
BAR = 12
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
LONGEST_LINE = 1024
"""Bytes at the end of a log in which its last line is looked for."""


class LastLine:
    """The last line of a log that has something in it, looked up when the log has grown."""

    def __init__(self, log: str) -> None:
        self._log = log
        self._size = -1
        self._line = ""

    def __str__(self) -> str:
        try:
            size = os.stat(self._log).st_size
        except OSError:
            return self._line
        if size != self._size:
            self._size = size
            data = read_regular(self._log, LONGEST_LINE, tail=True) or b""
            lines = terminal.without_escapes(data.decode(errors="replace")).split("\n")
            said = next((line for line in reversed(lines) if line.strip()), "")
            self._line = terminal.rendered(" ".join(said.split()))
        return self._line


@dataclass
class Bars:
    """What is shown of an attempt: rich's numbers of its own bar and of those of its items, by
    name; `rank` says in which order attempts began."""

    rank: int
    whole: Any
    items: dict[str, Any] = field(default_factory=dict)


def rate(speed: float | None, unit: str) -> str:
    """How fast something progresses, in words; "" where that says nothing."""
    if not speed or speed <= 0 or unit in ("", "%", "seconds"):
        return ""
    if unit == "bytes":
        return f"{units.size(speed)}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 0.1 else f"{60 * speed:.1f} {unit}/min"


def clock(seconds: float | None) -> str:
    """A duration in five columns."""
    if seconds is None:
        return "--:--"
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes:02d}:{second:02d}" if minutes < 100 else f"{minutes // 60:3d} h"


class Rows(Progress):
    """A line a task: spinner, step, bar, time taken, time left, what is told of it, and dimmed the
    last line of its log. Each is cut to the terminal's width: one that wraps is not removed."""

    def __init__(self, width: int) -> None:
        self._step_width = width
        self._shown: tuple[int, list[int]] = (0, [])
        self._out = Console(file=sys.stdout)
        super().__init__(console=self._out, transient=True)

    def get_renderables(self) -> Iterator[Text]:
        self.resized()
        width = self._out.width
        rows = [self._row(t, width) for t in sorted(self.tasks, key=lambda t: t.fields["rank"])]
        self._shown = (width, [row.cell_len for row in rows])
        yield from rows

    def resized(self) -> None:
        """A terminal that became narrower has wrapped what was shown: more lines are to be
        removed then than were written."""
        before, lengths = self._shown
        width = self._out.width
        if width < before and lengths:
            height = sum(max(1, -(-length // width)) for length in lengths)
            self.live._live_render._shape = (width, height)
            self._shown = (width, [width] * height)

    def _row(self, task: Task, width: int) -> Text:
        frame = SPINNER[int(task.get_time() * 10) % len(SPINNER)]
        row = Text(f"{frame} {task.fields['step']:<{self._step_width}} ", no_wrap=True)
        done = round(BAR * (task.percentage / 100)) if task.total else 0
        row.append("━" * done, "green").append("─" * (BAR - done), "bright_black")
        row.append(f" {clock(task.elapsed)} ", "yellow")
        row.append(f"-{clock(task.time_remaining)}" if task.total else " " * 6, "cyan")
        told, speed = task.fields["detail"], rate(task.speed, task.fields["unit"])
        if speed and "/s" not in told and not task.finished:
            told = ", ".join(part for part in (told, speed) if part)
        row.append(f" {told}" if told else "")
        if line := str(task.fields["log"]):
            row.append(f"  {line}" if told else f" {line}", "dim")
        row.truncate(max(1, width - 1), overflow="ellipsis")
        return row


class Live(Lines):
    """On a terminal: the same lines, and below them one for each running attempt, followed by those
    of the items that it works on."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self._progress = Rows(width)
        self._bars: dict[str, Bars] = {}
        self._begun = 0
        self._progress.start()

    def event(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "attempt.started":
            self.begin(event["step"], event.get("log", ""))
        elif event["type"] in ("attempt.succeeded", "attempt.failed"):
            self.end(event["step"])
        super().event(event)

    def begin(self, step: str, log: str = "") -> None:
        self._begun += 1
        self._bars[step] = Bars(self._begun, self._add(step, self._begun, log))

    def progress(self, step: str, message: Mapping[str, Any]) -> None:
        if step not in self._bars:
            return
        bars = self._bars[step]
        self._update(bars.whole, message, human.amount(message), message["unit"])
        items = {item["name"]: item for item in message["items"][:ITEMS]}
        for name in bars.items.keys() - items.keys():
            self._progress.remove_task(bars.items.pop(name))
        for name, item in items.items():
            if name not in bars.items:
                bars.items[name] = self._add("", bars.rank)
            self._update(bars.items[name], item, human.item(item))

    def _add(self, step: str, rank: int, log: str = "") -> Any:
        told: dict[str, Any] = {"detail": "", "unit": "", "log": LastLine(log)}
        return self._progress.add_task("", total=None, step=step, rank=rank, **told)

    def _update(self, bar: Any, message: Mapping[str, Any], detail: str, unit: str = "") -> None:
        done, total = message["done"], message["total"]
        told = terminal.rendered(detail)
        self._progress.update(bar, completed=done, total=total, detail=told, unit=unit)

    def end(self, step: str) -> None:
        if bars := self._bars.pop(step, None):
            for bar in (bars.whole, *bars.items.values()):
                self._progress.remove_task(bar)

    def print(self, text: str) -> None:
        self._progress.resized()
        self._progress.console.print(Text.from_ansi(terminal.rendered(text)), soft_wrap=True)

    def close(self) -> None:
        self._progress.resized()
        self._progress.stop()
