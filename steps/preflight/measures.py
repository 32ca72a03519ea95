"""Units and versions, and what a machine without a GPU can do."""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30
GB = 10**9

REHEARSE = "runbook run rehearsal"
"""The whole way, with a tiny model on the CPU."""


def version(text: str) -> tuple[int, ...]:
    """`580.126.09` as (580, 126, 9); what is no number ends it."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
