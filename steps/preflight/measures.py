"""Units and versions, and what a machine without a GPU can do."""

from __future__ import annotations

from dataclasses import replace

from runbook.remedy import Remedy

MIB = 1 << 20
GIB = 1 << 30
GB = 10**9

REHEARSE = Remedy("run", ("rehearsal",))
"""The whole way, with a tiny model on the CPU."""


def or_rehearse(text: str) -> Remedy:
    """What else there is to do without a GPU."""
    return replace(REHEARSE, text=f"{text}; without a GPU, {{command}}")


def version(text: str) -> tuple[int, ...]:
    """`580.126.09` as (580, 126, 9); what is no number ends it."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
