"""The arithmetic of the KV cache against what starts of vLLM 0.33.0 said of theirs."""

from __future__ import annotations

import pytest

from runbook.steps.checkpoint.kv_cache import request_bytes
from tests.steps.checkpoint.full_size import CONFIG

RATIOS = [0, 0, *[4, 128] * 20, 4]
WIDTHS = {**CONFIG, "sliding_window": 128}
FLAGSHIP = {
    **{key: value for key, value in WIDTHS.items() if not key.startswith("dspark")},
    "compress_ratios": [*RATIOS, 0],
}
SIX = {**FLAGSHIP, "num_hidden_layers": 6, "compress_ratios": [*RATIOS[:6], 0]}
GIB = 1 << 30


@pytest.mark.parametrize(
    ("config", "length", "step", "gib", "tokens", "concurrency"),
    [
        # Two H200, the flagship's size, and one H200 with six of its layers: their logs.
        (FLAGSHIP, 524288, 8192, 51.55, 3_316_947, 6.33),
        (SIX, 131072, 8192, 96.65, 18_446_956, 140.74),
    ],
)
def test_measured(config, length, step, gib, tokens, concurrency):
    held = gib * GIB / request_bytes(config, length, step)
    assert round(held, 2) == concurrency
    assert held * length == pytest.approx(tokens, rel=1e-3)


@pytest.mark.parametrize(
    ("length", "step", "gib"),
    [(1_000_000, 2048, 5.22), (262_144, 4096, 4.09), (131_072, 4096, 3.61), (131_072, 2048, 2.06)],
)
def test_of_0731(length, step, gib):
    """By vLLM's own planner, fed with the same layers."""
    assert request_bytes(WIDTHS, length, step) / GIB == pytest.approx(gib, abs=0.01)


def test_a_longer_request_or_step_takes_more():
    base = request_bytes(WIDTHS, 262_144, 2048)
    assert request_bytes(WIDTHS, 262_145, 2048) > base
    assert request_bytes(WIDTHS, 262_144, 4096) > base
    assert request_bytes(WIDTHS, 1024, 4096) < base
