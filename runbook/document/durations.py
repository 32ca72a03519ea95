"""Durations as documents write them: `90s`, `20m`, `4h`, `1h30m`, `2d`."""

from __future__ import annotations

import re

PATTERN = (
    r"^(?=.)(\d+(\.\d+)?d)?(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?$"  # largest unit first
)
EXPECTED = "a duration such as 90s, 20m, 4h or 1h30m"
_UNITS = (86400.0, 3600.0, 60.0, 1.0)


def seconds(text: str) -> float:
    """Seconds of a duration; ValueError if `text` is none."""
    match = re.fullmatch(PATTERN, text, re.ASCII)
    if match is None:
        raise ValueError(f"`{text}` is not a duration")
    amounts = match.groups()[::2]
    return sum(float(a[:-1]) * unit for a, unit in zip(amounts, _UNITS, strict=True) if a)
