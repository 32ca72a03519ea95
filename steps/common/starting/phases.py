"""How long each phase of a start took."""

from __future__ import annotations

import time


class Phases:
    """A clock that always runs in one phase; one that comes again adds to what it took before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.phase = ""
        self.since = time.monotonic()

    def enter(self, phase: str) -> None:
        if phase != self.phase:
            self._stop()
            self.phase = phase

    def end(self) -> dict[str, float]:
        """Seconds of each phase, in the order of their first beginning."""
        self._stop()
        return {phase: round(seconds, 1) for phase, seconds in self.seconds.items()}

    def _stop(self) -> None:
        now = time.monotonic()
        if self.phase:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.since = now
