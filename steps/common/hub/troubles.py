"""What follows when something goes wrong with a file: another try, another source, the end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.hub.board import Board
from runbook.steps.common.hub.fetch import Changed, Expired, Misbehaved
from runbook.steps.common.hub.refusals import Busy, Contradiction
from runbook.steps.common.hub.source import Source
from runbook.steps.common.hub.transfer import Transfer, Tuning
from runbook.steps.common.pacing import backoff

ASK_AGAIN = 2
"""Failures in a row after which the hub may know a better content location."""


class Troubles:
    """Policy over all sources. The first one is the hub itself."""

    def __init__(self, board: Board, sources: Sequence[Source], tuning: Tuning) -> None:
        self._board = board
        self._sources = sources
        self._tuning = tuning
        self._not_before = [0.0] * len(sources)

    def wait_for(self, source: int) -> None:
        """Until this source may be asked again, or the download stops."""
        while not self._board.stop.is_set():
            wait = self._not_before[source] - time.monotonic()
            if wait <= 0:
                return
            self._board.stop.wait(min(wait, 1.0))

    def changed(self, transfer: Transfer, source: int, change: Changed) -> None:
        """Other content under the same name: nothing of before may be kept."""
        endpoint = self._sources[source].endpoint
        with self._board.ready:
            if transfer.restart:
                return
            transfer.restart = True
            transfer.restarts += 1
            transfer.best = 0
            if transfer.restarts > self._tuning.restarts:
                transfer.refused.add(source)
                transfer.restarts = 0
        path = transfer.entry.path
        self._board.say(f"{path}: changed at {endpoint} ({change}): from the start")
        if len(transfer.refused) == len(self._sources):
            raise StepFailure(
                f"{path} keeps changing at {endpoint}",
                code="changed_upstream",
                cause=str(change),
                remedy=Remedy("run", text="{command} later, or choose another endpoint"),
                retryable=True,
            )
        if source in transfer.refused:
            self.met(transfer, source, change, gained=False)

    def refused(self, transfer: Transfer, source: int, failure: StepFailure) -> None:
        """A source does not give the file. The hub's word against its own listing ends it all, as
        does the last source."""
        with self._board.ready:
            transfer.refused.add(source)
        hub_itself = source == 0 and isinstance(failure, Contradiction)
        if hub_itself or len(transfer.refused) == len(self._sources):
            raise failure
        self.met(transfer, source, failure, gained=False)

    def met(self, transfer: Transfer, source: int, trouble: Exception, *, gained: bool) -> None:
        """Note a failure, and say when and where the next try is."""
        board, path = self._board, transfer.entry.path
        if board.stop.is_set():
            return
        asked = trouble.wait if isinstance(trouble, Busy) else None
        with board.ready:
            board.last_trouble = f"{path}: {trouble}"
            transfer.failures = 1 if gained else transfer.failures + 1
            transfer.misdeeds += isinstance(trouble, (Expired, Misbehaved))
            failures, misdeeds = transfer.failures, transfer.misdeeds
            left = board.patience_left()
        if misdeeds > self._tuning.misdeeds_per_source and source not in transfer.refused:
            transfer.misdeeds = 0
            self.refused(transfer, source, self._no_server(source, trouble))
            return
        too_long = asked is not None and asked > left
        hopeless = source in transfer.refused or too_long
        if (hopeless or failures >= self._tuning.failures_per_source) and self._turn(
            transfer, source, trouble
        ):
            return
        if too_long:
            raise board.gave_up(f"the server wants to be left alone for {asked:g} s")
        pause = backoff(failures, self._tuning.first_wait, self._tuning.longest_wait)
        if asked is not None:
            pause = asked + pause / 10  # not before the server says, and not all at once
        with board.ready:
            self._not_before[source] = max(self._not_before[source], time.monotonic() + pause)
        board.say(f"{path}: {trouble}; next try in {pause:.1f} s")

    def _no_server(self, source: int, trouble: Exception) -> StepFailure:
        return StepFailure(
            f"{self._sources[source].endpoint} leads to answers that cannot be used: {trouble}",
            code="bad_answer",
            cause="that server, or a proxy or firewall in between, does not give the bytes",
            remedy=Remedy(
                "run", text="let it through, choose another endpoint, or {command} later"
            ),
            retryable=True,
        )

    def _turn(self, transfer: Transfer, source: int, trouble: Exception) -> bool:
        """Go on with the next source that has not refused; False if there is no other."""
        count = len(self._sources)
        order = ((source + step) % count for step in range(1, count))
        following = next((other for other in order if other not in transfer.refused), None)
        if following is None:
            return False
        with self._board.ready:
            if transfer.source == source:
                transfer.source = following
                transfer.failures = 0
        endpoint = self._sources[following].endpoint
        self._board.say(f"{transfer.entry.path}: {trouble}; going on with {endpoint}")
        return True
