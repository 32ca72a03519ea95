"""Many files, many connections.

Workers are threads. Each takes a file of its own while there are untouched ones, so that bytes
arrive in order and are hashed from memory; then the free ones help with what is left of the
others, one segment after the other. Only the thread that calls `run` talks to the outside
(`on_done`, `on_event`, `on_progress`) and may be interrupted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runbook.protocol import Item, StepFailure
from runbook.steps.common.disk import disk_failure
from runbook.steps.common.hub.board import Board
from runbook.steps.common.hub.fetch import Client
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.source import Source
from runbook.steps.common.hub.transfer import Tuning
from runbook.steps.common.hub.worker import Recorder, Worker
from runbook.steps.common.pacing import Bandwidth, Patience

__all__ = ["Download", "Tuning"]


class Download:
    """`record` is called by the workers, with each whole file just before it takes its name."""

    def __init__(
        self,
        listing: Listing,
        folder: Path,
        sources: Sequence[Source],
        *,
        workers: int,
        verify: str,
        patience: float,
        record: Recorder,
        bandwidth: int | None = None,
        tuning: Tuning | None = None,
        on_done: Callable[[Entry], None] = lambda entry: None,
        on_event: Callable[[str], None] = lambda line: None,
        on_progress: Callable[[int, list[Item]], None] = lambda done, files: None,
    ) -> None:
        self._listing = listing
        self._folder = folder
        self._sources = sources
        # Of what a mirror gives, every byte is proven: only the hub says what the bytes are.
        self._hashed = verify == "sha256" or len(sources) > 1
        self._tuning = tuning or Tuning()
        self._workers = workers
        self._bandwidth = bandwidth
        least = self._tuning.least if bandwidth is None else min(self._tuning.least, bandwidth / 10)
        self._patience = Patience(patience, least)
        self._record = record
        self._on_done = on_done
        self._on_event = on_event
        self._on_progress = on_progress

    @property
    def verifies(self) -> bool:
        """Whether each digest is proven."""
        return self._hashed

    def run(self, entries: Sequence[Entry]) -> None:
        """Fetch these files. Raises StepFailure; whatever is raised, what has arrived is kept
        and the next run goes on from there."""
        board = Board(self._listing.repo, entries, self._patience)
        client = Client(self._workers, self._tuning.timeout)
        worker = Worker(
            board,
            self._listing,
            self._folder,
            self._sources,
            client,
            Bandwidth(self._bandwidth),
            self._tuning,
            self._hashed,
            self._record,
        )
        threads = [
            threading.Thread(
                target=self._work, args=(board, worker), name=f"fetch-{n}", daemon=True
            )
            for n in range(min(self._workers, max(1, self._connections(entries))))
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not board.stop.is_set():
                self._tell(board, self._tuning.poll)
                board.check_patience()
        finally:
            self._halt(board, client, threads)
            self._tell(board, 0)
        if board.failure is not None:
            raise board.failure

    def _connections(self, entries: Sequence[Entry]) -> int:
        """No more than there are segments to fetch."""
        return sum(-(-entry.size // self._tuning.segment) or 1 for entry in entries)

    def _work(self, board: Board, worker: Worker) -> None:
        try:
            while (task := board.next()) is not None:
                try:
                    worker.serve(task)
                finally:
                    board.leave(task[0])
        except StepFailure as failure:
            board.fail(failure)
        except OSError as error:
            board.fail(disk_failure(error, self._folder))
        except BaseException as error:
            board.fail(error)
        finally:
            board.events.put(None)  # wakes the calling thread

    def _tell(self, board: Board, wait: float) -> None:
        try:
            event = board.events.get(timeout=wait) if wait else board.events.get_nowait()
            while True:
                if isinstance(event, Entry):
                    self._on_done(event)
                elif event is not None:
                    self._on_event(event)
                event = board.events.get_nowait()
        except queue.Empty:
            pass
        self._on_progress(*board.progress())

    def _halt(self, board: Board, client: Client, threads: Sequence[threading.Thread]) -> None:
        board.stop.set()
        with board.ready:
            board.ready.notify_all()
        if any(thread.is_alive() for thread in threads):
            client.close()
        deadline = time.monotonic() + self._tuning.halt
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        client.close()
        for transfer in board.unfinished():
            assert transfer.part is not None
            try:
                transfer.part.sync()
            except OSError as error:  # a full disk: the sidecar of before still holds
                board.say(f"{transfer.entry.path}: {error.strerror}")
            # A thread that waits for the hub may live on; its descriptor must stay its own.
            if not any(thread.is_alive() for thread in threads):
                transfer.part.close()
