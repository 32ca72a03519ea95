"""What quantising is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from .gptq import Options


@dataclass(frozen=True)
class Settings:
    """`threshold`: experts with fewer tokens are rounded to nearest. `batch`: experts at once.
    `unrouted`: what experts without any token are to the calibration: an `error`, or rounded to
    `nearest` like those with too few."""

    options: Options
    threshold: int
    batch: int
    unrouted: str = "error"
