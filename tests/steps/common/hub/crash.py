"""A process that dies at any system call which changes the disk, inside this process.

After the crash point nothing is written any more, by any thread, as after SIGKILL: not even what
a tidy end would still record. (Tests with real SIGKILL are in test_kill.py.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Crash(BaseException):
    """The process is dead."""


class Crasher:
    """Counts steps on the disk; from the given one on there are no more."""

    def __init__(self, at: int | None) -> None:
        self._left = at
        self._lock = threading.Lock()
        self.crashed = False

    def step(self) -> None:
        with self._lock:
            if self._left is None:
                return
            self._left -= 1
            if self._left < 0:
                self.crashed = True
                raise Crash

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """May die before the call or right after it."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.step()
            result = function(*arguments, **options)
            self.step()
            return result

        return call


class CrashingOs:
    """The os module for one other module."""

    def __init__(self, crasher: Crasher) -> None:
        for name in ("pwrite", "fdatasync", "fsync", "ftruncate", "replace", "write"):
            setattr(self, name, crasher.around(getattr(os, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@contextmanager
def crashing(monkeypatch: Any, at: int | None) -> Iterator[Crasher]:
    from runbook.steps.common import stamp
    from runbook.steps.common.hub import acquire, inventory, part
    from runbook.steps.weights import tensors

    crasher = Crasher(at)
    with monkeypatch.context() as patch:
        for module in (part, inventory):
            patch.setattr(module, "os", CrashingOs(crasher))
        patch.setattr(part, "write_json", crasher.around(part.write_json))
        patch.setattr(stamp, "write_json", crasher.around(stamp.write_json))
        patch.setattr(acquire, "sync_folder", crasher.around(acquire.sync_folder))
        patch.setattr(tensors, "problems", crasher.around(tensors.problems))
        yield crasher
