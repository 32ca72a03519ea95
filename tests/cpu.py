"""How much the tests over any input try, and what one example may cost: processor time, which other
processes do not take."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0


def examples(usual: int) -> int:
    """How many examples a test tries: `usual`, or as many as RUNBOOK_TEST_EXAMPLES says."""
    return int(os.environ.get("RUNBOOK_TEST_EXAMPLES") or usual)


@contextmanager
def bounded() -> Iterator[None]:
    """Fails if what is within takes more than 5 s of this process's time."""
    began = time.process_time()
    yield
    spent = time.process_time() - began
    assert spent < SECONDS, f"{spent:.1f} s for one example"
