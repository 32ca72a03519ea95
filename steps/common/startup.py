"""Wait until a server that was started is ready, or has certainly failed: the one way for all
servers that steps start."""

from __future__ import annotations

import time
from collections.abc import Callable

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.server_log import Tail
from runbook.steps.common.service import Service

POLL_SECONDS = 0.2
RECENT_LINES = 400
"""How far back a fatal line is looked for at each look: all of a long log would cost too much."""
TAIL_LINES = 15
ENDED = "the server ended while it started"


class Startup:
    """Follows one server: its log, its process, and until it is ready its deadline.

    `diagnoses` is the kind of step whose known failures its log may show.
    """

    def __init__(self, ctx: Context, running: Service, seconds: float, diagnoses: str) -> None:
        self.ctx = ctx
        self.running = running
        self.seconds = seconds
        self.diagnoses = diagnoses
        self.deadline = time.monotonic() + seconds
        self.tail = Tail(running.log)
        self.lines: list[str] = []

    def until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready` says so. Raises StepFailure if it cannot become true any more."""
        while not ready():
            self.look()
            time.sleep(POLL_SECONDS)
        self.follow(ENDED)  # what it said until now belongs to its start

    def look(self) -> None:
        """`follow`, and raise if time is up."""
        self.follow(ENDED)
        if time.monotonic() > self.deadline:
            raise self.overdue()

    def follow(self, message: str) -> None:
        """Read on in the log; raise, with this message, if the process is dead, or if the log
        shows that it is lost."""
        alive = self.running.alive()  # before the log, so that a dead one's last words are read
        news = list(self.tail.lines())
        for line in news:
            self.ctx.log(line)
            self.lines.append(line)
            self.take(line)
        if not alive:
            raise self.failure(message, "server_died")
        if news:
            self._require_hope()

    def take(self, line: str) -> None:
        """A new line of the log: for those who read progress in it."""

    def doing(self) -> str:
        """What the server was about to do, for whoever waited too long."""
        return "start"

    def _require_hope(self) -> None:
        from runbook.steps.common.diagnoses import diagnose

        recent = "\n".join(self.lines[-RECENT_LINES:])
        if (known := diagnose(self.diagnoses, recent, self.ctx.facts, only_fatal=True)) is not None:
            raise known.failure("the server cannot start", str(self.running.log))

    def overdue(self) -> StepFailure:
        last = self.lines[-1] if self.lines else "none"
        return StepFailure(
            f"the server is not ready after {self.seconds:.0f} seconds",
            code="start_timeout",
            cause=f"it was about to {self.doing()}; the log's last line: {last}",
            remedy=Remedy(
                "run", text="if it only is slow, raise `start_timeout` of the step; then {command}"
            ),
            retryable=True,
            where=str(self.running.log),
        )

    def failure(self, message: str, code: str) -> StepFailure:
        """The failure that the log tells of, from the most to the least that is known."""
        from runbook.steps.common.diagnoses import diagnose, root_error

        text = "\n".join(self.lines)
        last_lines = "\n".join(self.lines[-TAIL_LINES:])
        where = str(self.running.log)
        if (known := diagnose(self.diagnoses, text, self.ctx.facts)) is not None:
            return known.failure(message, where)
        return StepFailure(
            message,
            code=code,
            cause=str(root_error(text) or last_lines or "the log is empty"),
            remedy=Remedy(
                "logs",
                ("{step}",),
                text="{command} has what came before; running again starts it anew",
            ),
            where=where,
        )
