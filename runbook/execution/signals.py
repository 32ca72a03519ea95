"""The signals that stop a run, heard in its loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from runbook.execution.outcome import STOP_CODES


class Signals:
    """While open, calls `note` with the number of each stop signal, and makes `wakeup` readable."""

    def __init__(self, note: Callable[[int], None]) -> None:
        self._previous: dict[int, Any] = {
            number: signal.signal(number, lambda number, frame: note(number))
            for number in STOP_CODES
        }
        self.wakeup, self._alarm = os.pipe()
        os.set_blocking(self._alarm, False)
        signal.set_wakeup_fd(self._alarm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_CODES)  # held back since the lock was taken

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._alarm)
        os.close(self.wakeup)
