"""What the workers of a download share: who does what next, what was gained, how it ends."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence

from runbook.protocol import Item, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.hub.listing import Entry
from runbook.steps.common.hub.transfer import Span, Transfer
from runbook.steps.common.pacing import Patience
from runbook.units import size

Task = tuple[Transfer, Span | None]
"""A span of a file, or (span None) the file itself, to be opened or settled."""


class Board:
    """Its lock, `ready`, is the one of all transfers. To choose is independent of their number:
    only those at work are looked through."""

    def __init__(self, what: str, entries: Sequence[Entry], patience: Patience) -> None:
        self.what = what
        self.ready = threading.Condition()
        self.stop = threading.Event()
        self.events: queue.SimpleQueue[str | Entry | None] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self.last_trouble = ""
        self.received = 0
        """Bytes that came over the network."""
        self._patience = patience
        self._fresh = deque(Transfer(e) for e in sorted(entries, key=lambda e: -e.size))
        self._open: list[Transfer] = []
        self._unsettled = len(self._fresh)
        self._settled_bytes = 0

    def next(self) -> Task | None:
        """The next thing to do; None when all is done or the download stops."""
        with self.ready:
            while not self.stop.is_set() and self._unsettled:
                if task := self._choose():
                    task[0].active += 1
                    return task
                self.ready.wait(1.0)
            self.ready.notify_all()
        return None

    def _choose(self) -> Task | None:
        helped: Transfer | None = None
        for transfer in self._open:
            if not transfer.opened or transfer.settled:
                continue
            idle = transfer.active == 0
            waits = transfer.restart or transfer.inspect or not transfer.pending
            if idle and waits:
                return transfer, None
            if waits:
                continue
            if idle:
                return transfer, transfer.pending.popleft()
            if not transfer.unsplit and (
                helped is None or len(transfer.pending) > len(helped.pending)
            ):
                helped = transfer
        if self._fresh:
            self._open.append(self._fresh.popleft())
            return self._open[-1], None
        if helped is not None:
            return helped, helped.pending.popleft()
        return None

    def leave(self, transfer: Transfer) -> None:
        """A worker is done with its task."""
        with self.ready:
            transfer.active -= 1
            self.ready.notify_all()

    def settle(self, transfer: Transfer) -> None:
        with self.ready:
            transfer.settled = True
            self._open.remove(transfer)
            self._unsettled -= 1
            self._settled_bytes += transfer.entry.size
            self._patience.gain(1)
            self.ready.notify_all()
        self.events.put(transfer.entry)

    def count(self, transfer: Transfer, received: int) -> None:
        """Bytes came in. Only those that were never here before are a gain."""
        with self.ready:
            self.received += received
            if gained := transfer.gained():
                self._patience.gain(gained)
                transfer.failures = transfer.misdeeds = 0

    def say(self, line: str) -> None:
        self.events.put(line)

    def fail(self, failure: BaseException) -> None:
        """End it; the first failure is the one that is told."""
        with self.ready:
            if self.failure is None and not self.stop.is_set():
                self.failure = failure
            self.stop.set()
            self.ready.notify_all()

    def progress(self) -> tuple[int, list[Item]]:
        """Bytes that are here, and the files at work."""
        with self.ready:
            at_work = [(t, t.done) for t in self._open if not t.settled]
            items = [Item(t.entry.path, done, t.entry.size) for t, done in at_work if t.active]
            return self._settled_bytes + sum(done for _, done in at_work), items

    def unfinished(self) -> list[Transfer]:
        with self.ready:
            return [t for t in self._open if t.part is not None and not t.settled]

    def patience_left(self) -> float:
        return self._patience.left()

    def check_patience(self) -> None:
        with self.ready:
            gained = self._patience.exhausted() if self._unsettled else None
        if gained is not None and not self.stop.is_set():
            came = f"only {size(gained)}" if gained else "nothing new"
            self.fail(self.gave_up(f"{came} came in {self._patience.seconds:g} s"))

    def gave_up(self, why: str) -> StepFailure:
        return StepFailure(
            f"the download of {self.what} does not go on: {why}",
            code="download_stalled",
            cause=self.last_trouble,
            remedy=Remedy("run", text="{command} later: it goes on where it stopped"),
            retryable=True,
        )
