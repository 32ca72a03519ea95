"""Two results compared: what is worse by more than the noise of their repetitions.

Of each figure the logarithms of the repetitions are compared by Welch's t-test, one-sided for
"worse" (https://en.wikipedia.org/wiki/Welch%27s_t-test). The probabilities of all figures together
are corrected by Holm's method, so that the chance of one false alarm stays below `LEVEL` however
many are compared (https://en.wikipedia.org/wiki/Holm-Bonferroni_method). Worse is what passes this
and differs by the tolerance at least. It sees the noise within a run of the benchmark; what differs
from one start of a server to the next, it does not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

LEVEL = 0.05
LEAST_REPETITIONS = 3

FIGURES: dict[str, tuple[str, bool]] = {
    "output_tokens_per_second": ("", True),
    "ttft_seconds": ("median", False),
    "tpot_seconds": ("median", False),
}
"""What is compared: the figure, which number of it, whether more is better."""

ALIKE = ("prompts", "input_length", "output_length", "concurrency", "requests", "ignore_eos",
         "thinking")  # fmt: skip
"""What must be the same of two points to compare them."""
AROUND = ("digests", "profile", "flags", "env", "gpus", "driver", "vllm")
"""What may differ between two results, and is then told."""

Outcome = Literal["worse", "better", "same", "too few repetitions"]


@dataclass(frozen=True, slots=True)
class Compared:
    """`change` is the ratio of the means less 1; `probability`, corrected, that so large a change
    for the worse comes of noise alone."""

    concurrency: int
    figure: str
    before: float
    now: float
    change: float
    probability: float | None
    outcome: Outcome

    def dump(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], tolerance: float
) -> list[Compared]:
    """All figures of the points that both results have. `tolerance` is a share, as 0.01."""
    found = [
        pair for new in now for old in before if alike(old, new) for pair in _figures(old, new)
    ]
    worse = holm([_worse(*pair) for pair in found])
    better = holm([_worse(name, point, new, old, up) for name, point, old, new, up in found])
    told = []
    for (name, point, old, new, up), down, gain in zip(found, worse, better, strict=True):
        ratio = statistics.fmean(new) / statistics.fmean(old)
        large = abs(ratio - 1) >= tolerance
        outcome: Outcome = "same"
        if down is None or gain is None:
            outcome = "too few repetitions"
        elif large and down <= LEVEL and (ratio < 1) == up:
            outcome = "worse"
        elif large and gain <= LEVEL:
            outcome = "better"
        told.append(
            Compared(
                point,
                name,
                round(statistics.fmean(old), 6),
                round(statistics.fmean(new), 6),
                round(ratio - 1, 5),
                None if down is None else round(down, 5),
                outcome,
            )
        )
    return told


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one["asked"].get(name) == other["asked"].get(name) for name in ALIKE)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was another around the two results."""
    return [name for name in AROUND if before.get(name) != now.get(name)]


Pair = tuple[str, int, list[float], list[float], bool]


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Pair]:
    for name, (key, more_is_better) in FIGURES.items():
        values = [
            [one[name][key] if key else one[name] for one in point["repetitions"] if one[name]]
            for point in (old, new)
        ]
        if all(values) and all(min(given) > 0 for given in values):
            yield name, new["asked"]["concurrency"], values[0], values[1], more_is_better


def _worse(_: str, __: int, old: list[float], new: list[float], up: bool) -> float | None:
    """The probability, of noise alone, that the new values are worse by as much as they are."""
    if min(len(old), len(new)) < LEAST_REPETITIONS:
        return None
    a, b = [math.log(v) for v in old], [math.log(v) for v in new]
    sign = 1 if up else -1
    gap = sign * (statistics.fmean(a) - statistics.fmean(b))
    parts = [statistics.variance(v) / len(v) for v in (a, b)]
    if sum(parts) == 0:
        return 0.0 if gap > 0 else 1.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(v) - 1) for part, v in zip(parts, (a, b), strict=True)
    )
    return student(gap / math.sqrt(sum(parts)), freedom)


def student(t: float, freedom: float) -> float:
    """The probability that Student's t exceeds a value: the integral of its density, by Simpson's
    rule over the angle whose tangent is t / sqrt(freedom), where it is cos^(freedom - 1)."""
    steps = 2000
    angle = math.atan2(abs(t), math.sqrt(freedom))
    width = (math.pi / 2 - angle) / steps
    heights = [
        math.pow(max(0.0, math.cos(angle + n * width)), freedom - 1) for n in range(steps + 1)
    ]
    inner = 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    area = (heights[0] + inner + heights[-1]) * width / 3
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    tail = min(0.5, area * scale / math.sqrt(math.pi))
    return tail if t >= 0 else 1 - tail


def holm(probabilities: Sequence[float | None]) -> list[float | None]:
    """Corrected for how many there are; None stays."""
    order = sorted(
        (p, n) for n, p in enumerate(probabilities) if p is not None
    )  # fmt: skip
    corrected: list[float | None] = [None] * len(probabilities)
    highest = 0.0
    for rank, (p, n) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[n] = highest
    return corrected
