"""Counters in Prometheus' text, with what a running vLLM 0.32.0 exposed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.steps.common.metrics import (
    ACCEPTED,
    ACCEPTED_AT,
    DRAFTED,
    DRAFTS,
    Speculation,
    counter,
    engine_steps,
)

NAMES = (DRAFTS, DRAFTED, ACCEPTED)
RECORDED = (Path(__file__).parents[1] / "smoke" / "answers" / "metrics.txt").read_text()


def test_recorded():
    assert Speculation.read(RECORDED) == Speculation(121, 121, 85, by_position=(85,))


def test_time_stamps_and_longer_names_are_other_metrics():
    assert counter(RECORDED, DRAFTED.replace("_total", "_created")) == pytest.approx(
        1.795e9, rel=1e-3
    )
    assert counter(RECORDED, "vllm:spec_decode_num_draft") is None
    assert counter(RECORDED, ACCEPTED.replace("_total", "")) is None


def test_label_sets_are_summed():
    text = (
        f'{DRAFTED}{{engine="0",model_name="a"}} 3.0\n'
        f'{DRAFTED}{{engine="1",model_name="a"}} 4.0\n'
        f'{DRAFTED}{{engine="1",model_name="b}} 9"}} 5.0 1700000000000\n'
        f"{DRAFTED} 6\n"
        f'# {DRAFTED} 100\n{DRAFTED}{{engine="2"}} broken line 7\n'
    )
    assert counter(text, DRAFTED) == 18


def test_a_server_that_does_not_speculate():
    assert Speculation.read("# HELP x y\nx 1\n") is None
    only_one = f"{DRAFTED} 1\n"
    assert Speculation.read(only_one) is None


@given(st.dictionaries(st.text(alphabet='ab"\\\n{}, =', max_size=8), st.integers(0, 10**9)))
def test_any_label_value_is_read(samples):
    def escape(value):
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    text = "".join(f'{DRAFTED}{{l="{escape(k)}"}} {v}\n' for k, v in samples.items())
    assert counter(text, DRAFTED) == (sum(samples.values()) if samples else None)


def test_difference_and_rate():
    before, after = Speculation(10, 10, 5), Speculation(30, 40, 20)
    assert after.since(before) == Speculation(20, 30, 15)
    assert after.since(before).acceptance == 0.5
    assert before.since(before).acceptance is None
    assert before.since(before).tokens_per_step is None


def test_acceptance_by_position_over_engines():
    def text(*counts):
        lines = [f"{name} {value}" for name, value in zip(NAMES, (10, 50, 22), strict=True)]
        for place, count in enumerate(counts):
            lines.append(f'{ACCEPTED_AT}{{engine="0",position="{place}"}} {count}')
            lines.append(f'{ACCEPTED_AT}{{position="{place}",engine="1"}} 1')
        return "\n".join(lines)

    counts = Speculation.read(text(9, 6, 3, 1, 0, 0, 0, 0, 0, 0, 0))
    assert counts.by_position[:4] == (10, 7, 4, 2) and len(counts.by_position) == 11
    assert counts.acceptance_by_position[:3] == [1.0, 0.7, 0.4]
    assert counts.tokens_per_step == 3.2
    assert counts.since(Speculation(0, 0, 0)).by_position == counts.by_position


@pytest.mark.parametrize(
    ("before", "after", "stepped"),
    [
        ("4000", "4001", True),
        ("4000", "4000", False),
    ],
)
def test_steps_of_the_engine_with_outputs(before, after, stepped):
    text = 'vllm:iteration_tokens_total_count{engine="0",model_name="m"} %s.0\n'
    assert (engine_steps(text % before) != engine_steps(text % after)) == stepped


def test_chunks_of_a_long_prompt_are_steps_too():
    """8,192 of 18 million tokens, while nothing is counted as a step."""
    text = 'vllm:iteration_tokens_total_count 7.0\nvllm:kv_cache_usage_perc{engine="0"} %r\n'
    chunks = {engine_steps(text % (n * 8192 / 18_446_956)) for n in range(10)}
    assert len(chunks) == 10
    assert engine_steps("") == 0
