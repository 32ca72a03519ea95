"""One worker of a download: opens a file, fetches a span of it, brings it to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.hub import digests
from runbook.steps.common.hub.board import Board, Task
from runbook.steps.common.hub.fetch import Answer, Changed, Client, Expired, Misbehaved
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.part import Part, Small
from runbook.steps.common.hub.refusals import Busy
from runbook.steps.common.hub.source import Location, Source
from runbook.steps.common.hub.transfer import Span, Transfer, Tuning
from runbook.steps.common.hub.troubles import ASK_AGAIN, Troubles
from runbook.steps.common.pacing import Bandwidth

Recorder = Callable[[Entry, Path], None]


class Worker:
    """What it does with a task; several threads share one. `record` is told of each whole file,
    just before it takes its name."""

    def __init__(
        self,
        board: Board,
        listing: Listing,
        folder: Path,
        sources: Sequence[Source],
        client: Client,
        bandwidth: Bandwidth,
        tuning: Tuning,
        hashed: bool,
        record: Recorder,
    ) -> None:
        self._board = board
        self._listing = listing
        self._folder = folder
        self._sources = sources
        self._client = client
        self._bandwidth = bandwidth
        self._tuning = tuning
        self._hashed = hashed
        self._record = record
        self._troubles = Troubles(board, sources, tuning)

    def serve(self, task: Task) -> None:
        transfer, span = task
        if not transfer.opened:
            self._open(transfer)
        elif span is None:
            self._settle(transfer)
        else:
            self._fetch(transfer, span)

    def _open(self, transfer: Transfer) -> None:
        make = Small if transfer.entry.size <= self._tuning.small else Part
        part = make(self._folder, transfer.entry, self._hashed)
        with self._board.ready:
            transfer.part = part
            transfer.passes = part.passes
            transfer.best = part.spans.total
            transfer.plan(self._tuning.segment)
            transfer.opened = True
            self._board.ready.notify_all()

    def _settle(self, transfer: Transfer) -> None:
        """No one else works on the file: start it again, look at it, or bring it to its end."""
        part = transfer.part
        assert part is not None
        if transfer.restart:
            self._start_again(transfer, part, keep_bytes=False)
        elif transfer.inspect:
            # The flag stays until then, so that no one is given a span of the file meanwhile.
            if digests.matches(transfer.entry, part.rehash()):
                self._finish(transfer, part, "wrong bytes were fetched again")
            with self._board.ready:
                transfer.inspect = False
                self._board.ready.notify_all()
        else:
            found = part.digest()
            if found is None or digests.matches(transfer.entry, found):
                self._finish(transfer, part)
            else:
                self._mismatch(transfer, part, found)

    def _start_again(self, transfer: Transfer, part: Part, keep_bytes: bool) -> None:
        part.start_again(keep_bytes)
        with self._board.ready:
            transfer.restart = False
            transfer.passes = part.passes
            transfer.locations.clear()
            transfer.plan(self._tuning.segment)
            self._board.ready.notify_all()

    def _finish(self, transfer: Transfer, part: Part, note: str = "") -> None:
        part.finish(lambda path: self._record(transfer.entry, path))
        if note:
            self._board.say(f"{transfer.entry.path}: {note}")
        self._board.settle(transfer)

    def _mismatch(self, transfer: Transfer, part: Part, found: str) -> None:
        """The whole file is here and its digest is wrong.

        It is fetched once more, from the next source if there is one, and compared range by
        range with what is here; after each range that differed the digest is taken anew, so
        what was right need not come again. Each source gets one such pass.
        """
        wrong = digests.wrong(transfer.entry, found)
        if transfer.passes > len(self._sources):
            part.discard()
            raise StepFailure(
                f"{transfer.entry.path} is not what {self._listing.repo} lists",
                code="digest_mismatch",
                cause=f"{wrong}; fetched {transfer.passes} times",
                remedy=Remedy(
                    "run",
                    text="a proxy or a mirror changes the bytes: choose another `endpoint`, or "
                    "{command} again",
                ),
                retryable=True,
            )
        self._board.say(f"{transfer.entry.path}: wrong bytes, fetching again ({wrong})")
        transfer.source = transfer.passes % len(self._sources)
        transfer.best = 0
        self._start_again(transfer, part, keep_bytes=True)

    # One span

    def _fetch(self, transfer: Transfer, span: Span) -> None:
        """Fetch a span, or give back to the file what is left of it."""
        part = transfer.part
        assert part is not None
        source = transfer.source
        position, best = span[0], transfer.best
        try:
            self._troubles.wait_for(source)
            if self._board.stop.is_set():
                return
            endpoint = self._sources[source].endpoint
            location = self._locate(transfer, source)
            validator = part.validators.get(endpoint, "")
            with self._client.get(location, span, transfer.entry.size, validator) as answer:
                transfer.locations[source] = answer.location
                if answer.whole and not transfer.unsplit:
                    self._go_unsplit(transfer)
                    return
                part.validators[endpoint] = answer.validator
                position = self._receive(transfer, part, answer, span)
        except (Busy, Expired, Misbehaved) as trouble:
            position = max(position, min(part.spans.end_of(span[0]), span[1]))
            if not isinstance(trouble, Busy) or transfer.failures >= ASK_AGAIN:
                transfer.locations.pop(source, None)
            self._troubles.met(transfer, source, trouble, gained=transfer.best > best)
        except Changed as change:
            self._troubles.changed(transfer, source, change)
        except StepFailure as failure:
            self._troubles.refused(transfer, source, failure)
        finally:
            self._give_back(transfer, (position, span[1]))

    def _give_back(self, transfer: Transfer, left: Span) -> None:
        with self._board.ready:
            if left[0] < left[1] and not transfer.restart:
                if not transfer.unsplit:
                    transfer.pending.appendleft(left)
                elif not transfer.pending:
                    transfer.restart = True
            self._board.ready.notify_all()

    def _locate(self, transfer: Transfer, source: int) -> Location:
        location = transfer.locations.get(source)
        return location or self._sources[source].location(self._listing, transfer.entry)

    def _receive(self, transfer: Transfer, part: Part, answer: Answer, span: Span) -> int:
        """Write what comes; returns the position reached."""
        position = marked = answer.start
        replaced = part.replaced
        size = transfer.entry.size
        while position < answer.stop and not self._board.stop.is_set():
            data = answer.read()
            if transfer.restart:
                return position
            if not data:
                raise Busy(f"the connection ended at byte {position} of {transfer.entry.path}")
            if position + len(data) > answer.stop:
                raise Misbehaved(f"more than the {answer.stop - answer.start} bytes asked for")
            part.write(position, data)
            position += len(data)
            self._board.count(transfer, len(data))
            self._bandwidth.take(len(data), self._board.stop)
            if position - marked >= self._tuning.mark:
                part.sync()
                marked = position
        if marked < position == answer.stop and part.spans.total < size:
            part.sync()
        if part.replaced > replaced and position == answer.stop:
            with self._board.ready:
                transfer.inspect = True
        return position

    def _go_unsplit(self, transfer: Transfer) -> None:
        path = transfer.entry.path
        self._board.say(f"{path}: the server ignores ranges, one connection only")
        with self._board.ready:
            transfer.unsplit = True
            transfer.restart = True
