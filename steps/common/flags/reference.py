"""What a profile's figures lead one to expect of a server on the cards at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("measured", "reported")
"""The better known first; what was only reckoned is held against nobody."""
HALVED = "Max-Q"
"""In the name of a card that has half the power of its twin: the twin reaches no less."""
TOLERANCE = 0.98
"""Cards of one power limit differ by some watts in what they report."""


def reference(
    figures: Sequence[Mapping[str, Any]], gpus: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What one stream reached on as many cards of the name and power of these, else on twins of
    half their power, as `models.Reference` has it; None if unknown."""
    fitting = [
        figure
        for figure in figures
        if figure["streams"] == 1 and figure["kind"] in KINDS and _same(figure, gpus)
    ]
    if not fitting:
        return None
    own = HALVED in gpus[0]["name"]
    fitting.sort(key=lambda f: ((HALVED in f["cards"]) != own, KINDS.index(f["kind"])))
    of_unit = {figure["unit"]: figure for figure in reversed(fitting)}
    rate, first = of_unit.get("tokens/s"), of_unit.get("seconds to the first token")
    sources = dict.fromkeys(figure["source"] for figure in (rate, first) if figure is not None)
    return {
        "tokens_per_second": None if rate is None else rate["value"],
        "ttft_seconds": None if first is None else first["value"],
        "source": ", ".join(sources),
    }


def _same(figure: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `2 x RTX PRO 6000 Max-Q` are these cards or less, by name and power."""
    count, _, name = figure["cards"].partition(" x ")
    if count != str(len(gpus)) or not name:
        return False
    words, least = set(name.split()), (figure.get("power_watts") or 0) * TOLERANCE
    for gpu in gpus:
        there = set(gpu["name"].split())
        # The Max-Q's name has the word Workstation, too.
        if not words - {HALVED} <= there or (HALVED in there and HALVED not in words):
            return False
        if gpu.get("power_limit") is not None and gpu["power_limit"] < least:
            return False
    return True
