from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest

from runbook.steps.common.pacing import Bandwidth, Patience, Rate, backoff, retry_after, within


def test_backoff_doubles_with_jitter_up_to_the_longest_wait():
    for failures, full in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)]:
        waits = [backoff(failures) for _ in range(200)]
        assert full / 2 <= min(waits) <= max(waits) <= full
        assert max(waits) - min(waits) > full / 4, "clients do not come back together"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("7", 7), ("1.5", 1.5), ("-3", 0), ("soon", None)],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_as_a_date():
    assert 8 < retry_after(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert retry_after(formatdate(time.time() - 10, usegmt=True)) == 0


def test_rate_and_time_left(monkeypatch):
    clock = iter([0.0, 0.5, 10.0, 60.0, 70.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    rate = Rate()
    assert rate.describe(0, 1e9) == ""
    assert rate.describe(5e6, 1e9) == "", "too early to tell"
    assert rate.describe(100e6, 1e9) == "10.0 MB/s, 90 s left"
    assert rate.describe(150e6, 1e9) == "", "what was before the window does not count"
    assert rate.describe(160e6, 1e9) == "1.0 MB/s, 14 min left"


def test_patience_counts_a_window(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    patience = Patience(10.0, 5.0)
    for second in range(1, 40):
        now = float(second)
        patience.gain(5)
        assert patience.exhausted() is None, "just enough, all the time"
        if second > 10:
            assert patience.left() == 1.0, "the window is no fuller than it must be"
    now = 40.0
    assert patience.exhausted() == 45
    for second in range(41, 50):
        now = float(second)
        assert patience.exhausted() is not None
    assert patience.exhausted() == 0


def test_patience_of_what_never_gained(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    patience = Patience(10.0, 0.0)
    assert patience.left() == 10.0
    now = 9.9
    assert patience.exhausted() is None
    now = 10.0
    assert patience.exhausted() == 0
    patience.gain(1)
    assert patience.exhausted() is None, "one unit is enough where no rate is asked for"


def test_what_takes_too_long_is_left():
    assert within(10, lambda: 7, TimeoutError()) == 7
    with pytest.raises(KeyError):
        within(10, lambda: {}["x"], TimeoutError())
    release = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, release.wait, TimeoutError())
    release.set()


def test_bandwidth_is_shared_by_threads():
    bandwidth, stop = Bandwidth(100_000), threading.Event()
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda: [bandwidth.take(1000, stop) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.35 < time.monotonic() - began < 10


def test_a_stop_ends_the_wait():
    bandwidth, stop = Bandwidth(1), threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    bandwidth.take(1000, stop)
    assert time.monotonic() - began < 30


def test_wait_that_the_hub_asks_for():
    from runbook.steps.common.hub.refusals import asked_wait

    exhausted = '"api";r=0;t=55'
    assert asked_wait({"ratelimit": exhausted}) == 55
    assert asked_wait({"ratelimit": exhausted, "Retry-After": "7"}) == 7
    assert asked_wait({"ratelimit": '"api";r=3;t=55'}) is None
    assert asked_wait({}) is None
