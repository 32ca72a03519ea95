"""Many files, many connections: who fetches what, and what follows when something goes wrong.

Workers are threads. Each takes a file of its own while there are untouched ones, so that bytes
arrive in order and are hashed from memory; then the free ones help with what is left of the
others, one segment after the other. Only the thread that calls `run` talks to the outside
(`on_progress`, `on_event`) and may be interrupted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runbook.protocol import Item, StepFailure
from runbook.steps.common.disk import disk_failure
from runbook.steps.common.hub import digests
from runbook.steps.common.hub.fetch import Answer, Changed, Client, Expired, Misbehaved
from runbook.steps.common.hub.hub import Busy, Hub, Location
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.part import Part
from runbook.steps.common.pacing import Bandwidth, backoff

ASK_AGAIN = 2
"""Failures in a row after which the hub may know a better content location."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes in bytes, times in seconds. A kill costs each worker at most a `mark` and one read:
    what it writes is marked that often, and at the end of each segment."""

    segment: int = 128 << 20
    mark: int = 32 << 20
    timeout: float = 30.0
    first_wait: float = 1.0
    longest_wait: float = 60.0
    failures_per_source: int = 4
    restarts: int = 3
    poll: float = 0.2
    halt: float = 5.0


@dataclass
class Job:
    """One file. All fields belong to the scheduler's lock, `part` to the worker that opens it."""

    entry: Entry
    part: Part | None = None
    pending: deque[tuple[int, int]] = field(default_factory=deque)
    active: int = 0
    opened: bool = False
    settled: bool = False
    source: int = 0
    locations: dict[int, Location] = field(default_factory=dict)
    """By source. They expire: then the hub is asked again."""
    refused: set[int] = field(default_factory=set)
    """Sources that do not have the file, or do not give it."""
    failures: int = 0
    restarts: int = 0
    passes: int = 1
    restart: bool = False
    """Nothing of it may be kept: whoever works on it stops, the last one starts it again."""
    inspect: bool = False
    """A later pass found different bytes: see whether the file is right now."""
    unsplit: bool = False
    """The server ignores ranges: one connection, from the first byte."""


class Download:
    def __init__(
        self,
        listing: Listing,
        folder: Path,
        sources: Sequence[Hub],
        *,
        workers: int,
        verify: str,
        patience: float,
        bandwidth: int | None = None,
        tuning: Tuning | None = None,
        on_done: Callable[[Entry], None] = lambda entry: None,
        on_event: Callable[[str], None] = lambda line: None,
        on_progress: Callable[[int, list[Item]], None] = lambda done, files: None,
    ) -> None:
        self._listing = listing
        self._folder = folder
        self._sources = sources
        self._hashed = verify == "sha256"
        self._patience = patience
        self._tuning = tuning or Tuning()
        self._workers = workers
        self._on_done = on_done
        self._on_event = on_event
        self._on_progress = on_progress
        self._client = Client(workers, self._tuning.timeout)
        self._bandwidth = Bandwidth(bandwidth)
        self._events: queue.SimpleQueue[str | Entry | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._ready = threading.Condition()
        self._failure: BaseException | None = None
        self._not_before = [0.0] * len(sources)
        self._last_gain = time.monotonic()
        self._last_trouble = ""
        self._jobs: list[Job] = []
        self.received = 0
        """Bytes that came over the network."""

    def run(self, entries: Sequence[Entry]) -> None:
        """Fetch these files. Raises StepFailure; whatever is raised, what has arrived is kept
        and the next run goes on from there."""
        self._jobs = [Job(entry) for entry in sorted(entries, key=lambda e: -e.size)]
        self._last_gain = time.monotonic()
        threads = [
            threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True)
            for n in range(min(self._workers, max(1, self._connections())))
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not self._stop.is_set():
                self._tell(self._tuning.poll)
                self._check_patience()
        finally:
            self._halt(threads)
            self._tell(0)
        if self._failure is not None:
            raise self._failure

    # The calling thread

    def _connections(self) -> int:
        """No more than there are segments to fetch."""
        return sum(-(-job.entry.size // self._tuning.segment) or 1 for job in self._jobs)

    def _tell(self, wait: float) -> None:
        try:
            event = self._events.get(timeout=wait) if wait else self._events.get_nowait()
            while True:
                if isinstance(event, Entry):
                    self._on_done(event)
                elif event is not None:
                    self._on_event(event)
                event = self._events.get_nowait()
        except queue.Empty:
            pass
        with self._ready:
            counts = [self._done(job) for job in self._jobs]
            active = [
                Item(job.entry.path, done, job.entry.size)
                for job, done in zip(self._jobs, counts, strict=True)
                if job.active and not job.settled
            ]
        self._on_progress(sum(counts), active)

    def _done(self, job: Job) -> int:
        if job.settled:
            return job.entry.size
        return job.part.spans.total if job.part is not None else 0

    def _check_patience(self) -> None:
        if time.monotonic() - self._last_gain > self._patience and not self._stop.is_set():
            self._fail(self._gave_up(f"no byte came for {self._patience:g} s"))

    def _gave_up(self, why: str) -> StepFailure:
        return StepFailure(
            f"the download of {self._listing.repo} does not go on: {why}",
            code="download_stalled",
            cause=self._last_trouble,
            remedy="run again later: it goes on where it stopped",
            retryable=True,
        )

    def _halt(self, threads: Sequence[threading.Thread]) -> None:
        self._stop.set()
        with self._ready:
            self._ready.notify_all()
        if any(thread.is_alive() for thread in threads):
            self._client.close()
        deadline = time.monotonic() + self._tuning.halt
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._client.close()
        for job in self._jobs:
            if job.part is not None and not job.settled:
                try:
                    job.part.sync()
                except OSError as error:  # a full disk: the sidecar of before still holds
                    self._events.put(f"{job.entry.path}: {error.strerror}")
                # A thread that waits for the hub may live on; its descriptor must stay its own.
                if not any(thread.is_alive() for thread in threads):
                    job.part.close()

    # Workers

    def _work(self) -> None:
        try:
            while (task := self._next()) is not None:
                job, span = task
                try:
                    self._serve(job, span)
                finally:
                    with self._ready:
                        job.active -= 1
                        self._ready.notify_all()
        except StepFailure as failure:
            self._fail(failure)
        except OSError as error:
            self._fail(disk_failure(error, self._folder))
        except BaseException as error:
            self._fail(error)
        finally:
            self._events.put(None)  # wakes the calling thread

    def _fail(self, failure: BaseException) -> None:
        with self._ready:
            if self._failure is None and not self._stop.is_set():
                self._failure = failure
            self._stop.set()
            self._ready.notify_all()

    def _next(self) -> tuple[Job, tuple[int, int] | None] | None:
        """The next thing to do: a span of a file, or (span None) the file itself, to be opened
        or settled; None when all is done or the download stops."""
        with self._ready:
            while not self._stop.is_set():
                if task := self._choose():
                    task[0].active += 1
                    return task
                if all(job.settled for job in self._jobs):
                    self._ready.notify_all()
                    return None
                self._ready.wait(1.0)
        return None

    def _choose(self) -> tuple[Job, tuple[int, int] | None] | None:
        helped: Job | None = None
        fresh: Job | None = None
        for job in self._jobs:
            if job.settled:
                continue
            if not job.opened:
                if job.active == 0:
                    fresh = fresh or job
                continue
            idle = job.active == 0
            if idle and (job.restart or job.inspect or not job.pending):
                return job, None
            if job.restart or job.inspect or not job.pending:
                continue
            if idle:
                return job, job.pending.popleft()
            if not job.unsplit and (helped is None or len(job.pending) > len(helped.pending)):
                helped = job
        if fresh is not None:
            return fresh, None
        if helped is not None:
            return helped, helped.pending.popleft()
        return None

    def _serve(self, job: Job, span: tuple[int, int] | None) -> None:
        if not job.opened:
            self._open(job)
        elif span is None:
            self._settle(job)
        else:
            self._fetch(job, span)

    def _open(self, job: Job) -> None:
        part = Part(self._folder / job.entry.path, job.entry, self._hashed)
        with self._ready:
            job.part = part
            job.passes = part.passes
            self._plan(job)
            job.opened = True
            self._ready.notify_all()

    def _plan(self, job: Job) -> None:
        """Cut what is missing into segments, in order."""
        assert job.part is not None
        step = self._tuning.segment
        job.pending.clear()
        if job.unsplit:
            if job.part.spans.total < job.entry.size:
                job.pending.append((0, job.entry.size))
            return
        for start, stop in job.part.spans.gaps(job.entry.size):
            while start < stop:
                job.pending.append((start, min(stop, start + step)))
                start += step

    def _settle(self, job: Job) -> None:
        """No one else works on the file: start it again, look at it, or bring it to its end."""
        part = job.part
        assert part is not None
        if job.restart:
            self._start_again(job, part, keep_bytes=False)
        elif job.inspect:
            # The flag stays until then, so that no one is given a span of the file meanwhile.
            if digests.matches(job.entry, part.rehash()):
                self._finish(job, part, "wrong bytes were fetched again")
            with self._ready:
                job.inspect = False
                self._ready.notify_all()
        else:
            found = part.digest()
            if found is None or digests.matches(job.entry, found):
                self._finish(job, part)
            else:
                self._mismatch(job, part, found)

    def _start_again(self, job: Job, part: Part, keep_bytes: bool) -> None:
        part.start_again(keep_bytes)
        with self._ready:
            job.restart = False
            job.passes = part.passes
            job.locations.clear()
            self._plan(job)
            self._ready.notify_all()

    def _finish(self, job: Job, part: Part, note: str = "") -> None:
        part.finish()
        with self._ready:
            job.settled = True
            self._ready.notify_all()
        if note:
            self._events.put(f"{job.entry.path}: {note}")
        self._events.put(job.entry)

    def _mismatch(self, job: Job, part: Part, found: str) -> None:
        """The whole file is here and its digest is wrong.

        It is fetched once more, from the next source if there is one, and compared range by
        range with what is here; after each range that differed the digest is taken anew, so
        what was right need not come again. Each source gets one such pass.
        """
        wrong = digests.wrong(job.entry, found)
        if job.passes > len(self._sources):
            part.discard()
            raise StepFailure(
                f"{job.entry.path} is not what {self._listing.repo} lists",
                code="digest_mismatch",
                cause=f"{wrong}; fetched {job.passes} times",
                remedy="a proxy or a mirror changes the bytes: choose another `endpoint`, or "
                "run again",
                retryable=True,
            )
        self._events.put(f"{job.entry.path}: wrong bytes, fetching again ({wrong})")
        job.source = job.passes % len(self._sources)
        self._start_again(job, part, keep_bytes=True)

    # One span

    def _fetch(self, job: Job, span: tuple[int, int]) -> None:
        """Fetch a span, or give back to the file what is left of it."""
        part = job.part
        assert part is not None
        source = job.source
        position = span[0]
        try:
            self._wait_for(source)
            if self._stop.is_set():
                return
            endpoint = self._sources[source].endpoint
            location = self._locate(job, source)
            validator = part.validators.get(endpoint, "")
            with self._client.get(location, span, job.entry.size, validator) as answer:
                if answer.whole and not job.unsplit:
                    self._go_unsplit(job, span)
                    return
                part.validators[endpoint] = answer.validator
                position = self._receive(job, part, answer, span)
        except (Busy, Expired, Misbehaved) as trouble:
            reached = min(part.spans.end_of(span[0]), span[1])
            gained, position = reached > position, reached
            if not isinstance(trouble, Busy) or job.failures >= ASK_AGAIN:
                job.locations.pop(source, None)
            self._troubled(job, source, trouble, gained=gained)
        except Changed as change:
            self._changed(job, source, change)
        except StepFailure as failure:
            with self._ready:
                job.refused.add(source)
            if len(job.refused) == len(self._sources):
                raise
            self._troubled(job, source, failure, gained=False)
        finally:
            with self._ready:
                if position < span[1] and not job.restart and not job.unsplit:
                    job.pending.appendleft((position, span[1]))
                elif job.unsplit and not job.restart and not job.pending and position < span[1]:
                    job.restart = True
                self._ready.notify_all()

    def _receive(self, job: Job, part: Part, answer: Answer, span: tuple[int, int]) -> int:
        """Write what comes; returns the position reached."""
        position = answer.start
        marked = position
        replaced = part.replaced
        while position < answer.stop and not self._stop.is_set():
            data = answer.read()
            if job.restart:
                return position
            if not data:
                raise Busy(f"the connection ended at byte {position} of {job.entry.path}")
            if position + len(data) > answer.stop:
                raise Misbehaved(f"more than the {answer.stop - answer.start} bytes asked for")
            part.write(position, data)
            position += len(data)
            self._count(job, len(data))
            self._bandwidth.take(len(data), self._stop)
            if position - marked >= self._tuning.mark:
                part.sync()
                marked = position
        if marked < position == answer.stop and part.spans.total < job.entry.size:
            part.sync()
        if part.replaced > replaced and position == answer.stop:
            with self._ready:
                job.inspect = True
        return position

    def _count(self, job: Job, count: int) -> None:
        with self._ready:
            self.received += count
            self._last_gain = time.monotonic()
            job.failures = 0

    def _locate(self, job: Job, source: int) -> Location:
        location = job.locations.get(source)
        if location is None:
            location = self._sources[source].locate(self._listing, job.entry)
            job.locations[source] = location
        return location

    def _go_unsplit(self, job: Job, span: tuple[int, int]) -> None:
        self._events.put(f"{job.entry.path}: the server ignores ranges, one connection only")
        with self._ready:
            job.unsplit = True
            job.restart = True

    def _changed(self, job: Job, source: int, change: Changed) -> None:
        """Other content under the same name: nothing of before may be kept."""
        endpoint = self._sources[source].endpoint
        with self._ready:
            if job.restart:
                return
            job.restart = True
            job.restarts += 1
            if job.restarts > self._tuning.restarts:
                job.refused.add(source)
                job.restarts = 0
        self._events.put(f"{job.entry.path}: changed at {endpoint} ({change}): from the start")
        if len(job.refused) == len(self._sources):
            raise StepFailure(
                f"{job.entry.path} keeps changing at {endpoint}",
                code="changed_upstream",
                cause=str(change),
                remedy="run again later, or choose another endpoint",
                retryable=True,
            )
        if source in job.refused:
            self._turn(job, source, change)

    def _troubled(self, job: Job, source: int, trouble: Exception, *, gained: bool) -> None:
        """Note a failure, and say when and where the next try is."""
        if self._stop.is_set():
            return
        asked = trouble.wait if isinstance(trouble, Busy) else None
        with self._ready:
            self._last_trouble = f"{job.entry.path}: {trouble}"
            job.failures = 1 if gained else job.failures + 1
            failures = job.failures
            left = self._patience - (time.monotonic() - self._last_gain)
        too_long = asked is not None and asked > left
        hopeless = source in job.refused or too_long
        if (hopeless or failures >= self._tuning.failures_per_source) and self._turn(
            job, source, trouble
        ):
            return
        if too_long:
            raise self._gave_up(f"the server wants to be left alone for {asked:g} s")
        pause = backoff(failures, self._tuning.first_wait, self._tuning.longest_wait)
        if asked is not None:
            pause = asked + pause / 10  # not before the server says, and not all at once
        with self._ready:
            self._not_before[source] = max(self._not_before[source], time.monotonic() + pause)
        self._events.put(f"{job.entry.path}: {trouble}; next try in {pause:.1f} s")

    def _turn(self, job: Job, source: int, trouble: Exception) -> bool:
        """Go on with the next source that has not refused; False if there is no other."""
        count = len(self._sources)
        order = ((source + step) % count for step in range(1, count))
        following = next((other for other in order if other not in job.refused), None)
        if following is None:
            return False
        with self._ready:
            if job.source == source:
                job.source = following
                job.failures = 0
        self._events.put(
            f"{job.entry.path}: {trouble}; going on with {self._sources[following].endpoint}"
        )
        return True

    def _wait_for(self, source: int) -> None:
        while not self._stop.is_set():
            wait = self._not_before[source] - time.monotonic()
            if wait <= 0:
                return
            self._stop.wait(min(wait, 1.0))
