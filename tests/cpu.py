"""A bound on what one example may cost: of processor time, which other processes do not take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0


@contextmanager
def bounded() -> Iterator[None]:
    """Fails if what is within takes more than 5 s of this process's time."""
    began = time.process_time()
    yield
    spent = time.process_time() - began
    assert spent < SECONDS, f"{spent:.1f} s for one example"
