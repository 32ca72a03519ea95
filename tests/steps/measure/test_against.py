"""The comparison of results, against tables and by trial."""

from __future__ import annotations

import random

import pytest

from runbook.steps.measure.against import compare, holm, student


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    # Quantiles of Student's t: https://en.wikipedia.org/wiki/Student%27s_t-distribution
    [(0, 5, 0.5), (6.314, 1, 0.05), (2.920, 2, 0.05), (2.132, 4, 0.05), (3.747, 4, 0.01),
     (5.893, 4, 0.002074), (1.697, 30, 0.05), (-2.132, 4, 0.95)],
)  # fmt: skip
def test_students_t(t, freedom, tail):
    assert student(t, freedom) == pytest.approx(tail, rel=2e-3)


def test_holm():
    corrected = holm([0.01, None, 0.04, 0.03])
    assert corrected[1] is None
    assert [p for p in corrected if p is not None] == pytest.approx([0.03, 0.06, 0.06])


def point(rates, streams=1):
    repetitions = [
        {
            "output_tokens_per_second": rate,
            "ttft_seconds": {"median": 1 / rate},
            "tpot_seconds": {"median": 1 / rate},
        }
        for rate in rates
    ]
    asked = {"prompts": "random", "concurrency": streams, "requests": 4}
    return {"asked": asked, "repetitions": repetitions}


def drawn(chance, mean, count=5, noise=0.02):
    return [mean * (1 + chance.gauss(0, noise)) for _ in range(count)]


@pytest.mark.harness
def test_noise_alone_is_rarely_a_regression_and_a_loss_is_seen():
    """2 % of noise in five repetitions, at four concurrencies: of 400 trials without a change at
    most 5 % tell of one, up to chance; of a loss of 10 % nearly all do."""
    chance = random.Random(4)
    alarms = seen = 0
    for _ in range(400):
        old = [point(drawn(chance, 100), n) for n in range(4)]
        same = compare(old, [point(drawn(chance, 100), n) for n in range(4)], 0.01)
        alarms += any(one.outcome == "worse" for one in same)
        slower = compare(old[:1], [point(drawn(chance, 90), 0)], 0.01)
        seen += slower[0].outcome == "worse"
    assert alarms <= 400 * 0.05 + 15
    assert seen >= 380


def test_small_or_unproven_changes_are_none():
    steady = compare([point([100, 100.1, 99.9])], [point([99.5, 99.6, 99.4])], 0.01)
    assert {one.outcome for one in steady} == {"same"}, "half a percent is tolerated"
    two = compare([point([100, 101])], [point([50, 51])], 0.01)
    assert {one.outcome for one in two} == {"too few repetitions"}
    assert compare([point([1, 1, 1], 1)], [point([1, 1, 1], 2)], 0.01) == []
