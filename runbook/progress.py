"""Shows a run while it goes on: lines as steps end; on a terminal also what is being done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from runbook import human


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
        elif kind == "attempt.notice":
            self.line(step, "", "", event["message"])
        elif kind == "attempt.succeeded":
            self.line(step, "satisfied", human.duration(event["seconds"]), "done")
            for reason in event["reasons"]:
                if reason["severity"] == "warning":
                    self.line(step, "warning", "", reason["message"])
        elif kind == "attempt.failed":
            again = event.get("retry_in")
            note = f"; again in {human.duration(again)}" if again is not None else ""
            took = human.duration(event["seconds"])
            self.line(step, "failed", took, event["error"]["message"] + note)

    def line(self, step: str, state: str, took: str, detail: str) -> None:
        detail = human.hanging(detail, self.width + 27)
        text = f"  {step:<{self.width}}  {human.paint(f'{state:<9}', state)}  {took:>10}  {detail}"
        self.print(text.rstrip())

    def print(self, text: str) -> None:
        sys.stdout.write(text + "\n")  # one write, where print makes two
        if self.flush:
            sys.stdout.flush()

    def begin(self, step: str) -> None:
        """Plain output tells of what has ended; what has begun, `event` tells."""

    def progress(self, step: str, message: Mapping[str, Any]) -> None:
        """Plain output shows no progress: `runbook status` does."""

    def end(self, step: str) -> None:
        pass

    def close(self) -> None:
        pass


class Live(Lines):
    """On a terminal: the same lines, and below them a bar for each running attempt."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[step]}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", table_column=None),
            console=Console(file=sys.stdout),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._progress.start()

    def event(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "attempt.started":
            self.begin(event["step"])
        elif event["type"] in ("attempt.succeeded", "attempt.failed"):
            self.end(event["step"])
        super().event(event)

    def begin(self, step: str) -> None:
        self._tasks[step] = self._progress.add_task(step, total=None, step=step, detail="")

    def progress(self, step: str, message: Mapping[str, Any]) -> None:
        if step in self._tasks:
            self._progress.update(
                self._tasks[step],
                completed=message["done"],
                total=message["total"],
                detail=human.amount(message),
            )

    def end(self, step: str) -> None:
        if step in self._tasks:
            self._progress.remove_task(self._tasks.pop(step))

    def print(self, text: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(text), soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def reporter(width: int) -> Lines:
    return Live(width) if human.is_terminal(sys.stdout) else Lines(width)
