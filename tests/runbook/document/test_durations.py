"""Durations."""

from __future__ import annotations

import pytest

from runbook.document.durations import seconds

GOOD = [
    ("90s", 90),
    ("20m", 1200),
    ("4h", 14400),
    ("1h30m", 5400),
    ("2d", 172800),
    ("0.5s", 0.5),
    ("1d2h3m4s", 93784),
]


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "5 s", "m", "1m1h", "-1s", "1h 30m", "1.s", "٣s", "1s\n"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(text)
