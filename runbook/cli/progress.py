"""Tells of a run while it goes on, in lines: what has begun, and what has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbook import units
from runbook.cli import human, terminal


class Lines:
    """Plain output: a line when an attempt starts, fails or ends, and when a step is decided."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._ends: dict[tuple[str, str, str], str] = {}
        """The rest of the last line: thousands may differ in their step alone."""
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
        end = self._ends.get((state, took, detail))
        if end is None:
            told = terminal.hanging(detail, self.width + 27)
            end = f"  {terminal.paint(f'{state:<9}', state)}  {took:>10}  {told}".rstrip()
            self._ends = {(state, took, detail): end}
        self.print(f"  {step.ljust(self.width)}{end}".rstrip())

    def print(self, text: str) -> None:
        terminal.say(text, flush=self.flush)

    def begin(self, step: str, log: str = "") -> None:
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
