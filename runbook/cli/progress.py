"""Shows a run while it goes on: lines as steps end; on a terminal also what is being done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runbook import units
from runbook.cli import human, terminal


class Lines:
    """Plain output: a line when an attempt starts, fails or ends, and when a step is decided."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.flush = False  # a run in which nothing happens prints its lines at once

    def event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        step = event.get("step", "")
        if kind == "step.satisfied":
            self.line(step, "satisfied", "", human.reason_text(event["reasons"]))
        elif kind == "step.decided" and event["decision"] == "run":
            self.flush = True
            self.line(step, "running", "", human.reason_text(event["reasons"]))
        elif kind == "step.decided":
            self.line(step, event["decision"], "", human.reason_text(event["reasons"]))
        elif kind == "step.waiting" and event["state"] == "waiting":
            self.line(step, "waiting", "", event["question"])
        elif kind == "step.blocked":
            self.line(step, "blocked", "", "needs " + ", ".join(event["needs"]))
        elif kind == "undo.started":
            self.line(step, "undoing", "", "")
        elif kind == "undo.finished":
            self.line(step, "undone", "", "")
        elif kind == "attempt.notice":
            self.line(step, "", "", event["message"])
        elif kind == "attempt.succeeded":
            self.line(step, "satisfied", units.duration(event["seconds"]), "done")
            for reason in event["reasons"]:
                if reason["severity"] == "warning":
                    self.line(step, "warning", "", reason["message"])
        elif kind == "attempt.failed":
            again = event.get("retry_in")
            note = f"; again in {units.duration(again)}" if again is not None else ""
            took = units.duration(event["seconds"])
            if event["error"]["code"] == "cancelled":
                self.line(step, "cancelled", took, event["error"]["cause"])
            else:
                self.line(step, "failed", took, event["error"]["message"] + note)

    def line(self, step: str, state: str, took: str, detail: str) -> None:
        detail = terminal.hanging(detail, self.width + 27)
        text = (
            f"  {step:<{self.width}}  {terminal.paint(f'{state:<9}', state)}  {took:>10}  {detail}"
        )
        self.print(text.rstrip())

    def print(self, text: str) -> None:
        terminal.say(text, flush=self.flush)

    def begin(self, step: str) -> None:
        """Plain output tells of what has ended; what has begun, `event` tells."""

    def progress(self, step: str, message: Mapping[str, Any]) -> None:
        """Plain output shows no progress: `runbook status` does."""

    def end(self, step: str) -> None:
        pass

    def checked(self, entry: Mapping[str, Any], deep: bool) -> None:
        """What `runbook check` found of a step."""
        self.end(entry["id"])
        took = units.duration(entry["seconds"]) if deep else ""
        self.line(entry["id"], entry["state"], took, human.reason_text(entry["reasons"]))

    def close(self) -> None:
        pass


ITEMS = 8
"""Items of one attempt that are shown at most."""


@dataclass
class Bars:
    """What is shown of an attempt: rich's numbers of its own bar and of those of its items, by
    name; `rank` says in which order attempts began."""

    rank: int
    whole: Any
    items: dict[str, Any] = field(default_factory=dict)


class Live(Lines):
    """On a terminal: the same lines, and below them a bar for each running attempt, followed by
    those of the items that it works on."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        class Ranked(Progress):
            def get_renderables(self) -> Any:
                yield self.make_tasks_table(sorted(self.tasks, key=lambda t: t.fields["rank"]))

        self._progress = Ranked(
            SpinnerColumn(),
            TextColumn("{task.fields[step]}", markup=False),
            BarColumn(bar_width=12),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            # One line each, whatever the width: a bar that wraps is not removed when it is resized.
            TextColumn(
                "{task.fields[detail]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=Console(file=sys.stdout),
            transient=True,
        )
        self._bars: dict[str, Bars] = {}
        self._begun = 0
        self._progress.start()

    def event(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "attempt.started":
            self.begin(event["step"])
        elif event["type"] in ("attempt.succeeded", "attempt.failed"):
            self.end(event["step"])
        super().event(event)

    def begin(self, step: str) -> None:
        self._begun += 1
        self._bars[step] = Bars(self._begun, self._add(step, self._begun))

    def progress(self, step: str, message: Mapping[str, Any]) -> None:
        if step not in self._bars:
            return
        bars = self._bars[step]
        self._update(bars.whole, message, human.amount(message))
        items = {item["name"]: item for item in message["items"][:ITEMS]}
        for name in bars.items.keys() - items.keys():
            self._progress.remove_task(bars.items.pop(name))
        for name, item in items.items():
            if name not in bars.items:
                bars.items[name] = self._add("", bars.rank)
            self._update(bars.items[name], item, human.item(item))

    def _add(self, step: str, rank: int) -> Any:
        return self._progress.add_task("", total=None, step=step, rank=rank, detail="")

    def _update(self, bar: Any, message: Mapping[str, Any], detail: str) -> None:
        done, total = message["done"], message["total"]
        self._progress.update(bar, completed=done, total=total, detail=terminal.rendered(detail))

    def end(self, step: str) -> None:
        if bars := self._bars.pop(step, None):
            for bar in (bars.whole, *bars.items.values()):
                self._progress.remove_task(bar)

    def print(self, text: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(terminal.rendered(text)), soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def reporter(width: int) -> Lines:
    return Live(width) if terminal.is_terminal(sys.stdout) else Lines(width)
