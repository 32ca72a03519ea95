"""One file of a download: what is known of it and what of it is still to be fetched."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from runbook.steps.common.hub.listing import Entry
from runbook.steps.common.hub.part import Part
from runbook.steps.common.hub.source import Location

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes in bytes, times in seconds. A kill costs each worker at most a `mark` and one read:
    what it writes is marked that often, and at the end of each segment. `small` files are held in
    memory until they are whole. `least`: bytes per second below which it is not worth waiting."""

    segment: int = 128 << 20
    mark: int = 32 << 20
    small: int = 1 << 20
    timeout: float = 30.0
    first_wait: float = 1.0
    longest_wait: float = 60.0
    failures_per_source: int = 4
    misdeeds_per_source: int = 8
    restarts: int = 3
    least: float = 1000.0
    poll: float = 0.2
    halt: float = 5.0


@dataclass(eq=False)
class Transfer:
    """All fields belong to the board's lock, `part` to the worker that opens it."""

    entry: Entry
    part: Part | None = None
    pending: deque[Span] = field(default_factory=deque)
    active: int = 0
    opened: bool = False
    settled: bool = False
    source: int = 0
    locations: dict[int, Location] = field(default_factory=dict)
    """By source. They expire: then the hub is asked again."""
    refused: set[int] = field(default_factory=set)
    """Sources that do not have the file, or do not give it."""
    failures: int = 0
    misdeeds: int = 0
    """Answers in a row that were refusals of a content server, or not what was asked for."""
    restarts: int = 0
    passes: int = 1
    best: int = 0
    """Bytes of this pass that were there at once at some time: only more is a gain."""
    restart: bool = False
    """Nothing of it may be kept: whoever works on it stops, the last one starts it again."""
    inspect: bool = False
    """A later pass found different bytes: see whether the file is right now."""
    unsplit: bool = False
    """The server ignores ranges: one connection, from the first byte."""

    @property
    def done(self) -> int:
        """Bytes that are here."""
        if self.settled:
            return self.entry.size
        return self.part.spans.total if self.part is not None else 0

    def plan(self, segment: int) -> None:
        """Cut what is missing into segments, in order."""
        assert self.part is not None
        self.pending.clear()
        if self.unsplit:
            if self.part.spans.total < self.entry.size:
                self.pending.append((0, self.entry.size))
            return
        for start, stop in self.part.spans.gaps(self.entry.size):
            while start < stop:
                self.pending.append((start, min(stop, start + segment)))
                start += segment

    def gained(self) -> int:
        """Bytes that were never here before, since it was asked last."""
        assert self.part is not None
        total = self.part.spans.total
        gained = max(0, total - self.best)
        self.best += gained
        return gained
