"""How fast and how often: backoff after failures, Retry-After, patience, the bandwidth limit."""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

T = TypeVar("T")

FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0


def backoff(failures: int, first: float = FIRST_WAIT, longest: float = LONGEST_WAIT) -> float:
    """Seconds to wait after the n-th failure in a row: doubled each time, with jitter between
    half and all of it, so that many clients of one server do not come back together."""
    return min(longest, first * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3). None for
    what is neither."""
    if not value:
        return None
    with suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with suppress(ValueError, TypeError, IndexError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def time_left(seconds: float) -> str:
    """As `12 min left`."""
    spoken = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
    return f"{spoken} left"


class Rate:
    """Bytes per second over the last half minute, from the bytes done at each look."""

    WINDOW = 30.0

    def __init__(self) -> None:
        self._looks: deque[tuple[float, float]] = deque()

    def describe(self, done: float, total: float) -> str:
        """As `85.1 MB/s, 12 min left`; empty until there is something to say."""
        now = time.monotonic()
        self._looks.append((now, done))
        while now - self._looks[0][0] > self.WINDOW:
            self._looks.popleft()
        began, before = self._looks[0]
        if now - began < 1.0 or done <= before:
            return ""
        rate = (done - before) / (now - began)
        return f"{rate / 1e6:.1f} MB/s, {time_left((total - done) / rate)}"


def within(seconds: float, ask: Callable[[], T], late: Exception) -> T:
    """What `ask` gives; raises `late` if that takes longer. It goes on in its thread then."""
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, ask()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=run, name="within", daemon=True).start()
    try:
        given, answer = answers.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise late from None
    if not given:
        raise answer
    result: T = answer
    return result


class Patience:
    """Ends what gains too little: fewer than `least` units a second, over `seconds`.

    Who gains says so with `gain`; only what was not there before is a gain. Not for several
    threads at once.
    """

    LOOKS = 20
    """That many a window: how exactly the window is kept."""

    def __init__(self, seconds: float, least: float) -> None:
        self.seconds = seconds
        self._needed = max(1.0, least * seconds)
        self._gained = 0
        self._looks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def gain(self, count: int) -> None:
        self._gained += count

    def left(self) -> float:
        """Seconds until it is exhausted if nothing is gained."""
        now = time.monotonic()
        enough = self._gained - self._needed
        since = next((when for when, gained in self._looks if gained > enough), now)
        return self.seconds - (now - since)

    def exhausted(self) -> int | None:
        """What was gained in the last `seconds` if that is too little, else None."""
        now = time.monotonic()
        if now - self._looks[-1][0] >= self.seconds / self.LOOKS:
            self._looks.append((now, self._gained))
        while len(self._looks) > 1 and now - self._looks[1][0] >= self.seconds:
            self._looks.popleft()
        began, before = self._looks[0]
        gained = self._gained - before
        return gained if now - began >= self.seconds and gained < self._needed else None


class Bandwidth:
    """A limit in bytes per second, shared by threads: each takes what it read and sleeps off
    the debt."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._paid_until = time.monotonic()

    def take(self, count: int, stop: threading.Event) -> None:
        if self.limit is None:
            return
        with self._lock:
            now = time.monotonic()
            self._paid_until = max(self._paid_until, now) + count / self.limit
            wait = self._paid_until - now
        stop.wait(wait)
