"""Figures of a repetition, by the definitions of `vllm bench serve`, so that both can be compared.

Source: vllm/benchmarks/serve.py, `calculate_metrics`, and vllm/benchmarks/lib/
endpoint_request_func.py, of vLLM 0.32.0 and 0.33.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runbook.steps.common.metrics import Speculation
from runbook.steps.measure.streams import Answer

SPREADS = ("ttft_seconds", "tpot_seconds", "itl_seconds", "latency_seconds")


def figures(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Of all requests of one repetition that took `seconds`; failed ones count in `failed` alone.

    output_tokens_per_second: generated tokens, as the server's `usage` counts them, over the whole
    time, from the first request to the end of the last.
    ttft: from sending a request to its first event with a choice.
    latency: to its last event with a choice.
    tpot: (latency - ttft) / (tokens - 1) of each request with more than one token.
    itl: between two events of a request; under speculation one event carries several tokens.
    """
    good = [answer for answer in answers if not answer.error]
    tokens = sum(answer.completion_tokens for answer in good)
    return {
        "requests": len(good),
        "failed": len(answers) - len(good),
        "seconds": round(seconds, 4),
        "input_tokens": sum(answer.prompt_tokens for answer in good),
        "output_tokens": tokens,
        "output_tokens_per_second": round(tokens / seconds, 3),
        "ttft_seconds": spread([answer.times[0] for answer in good]),
        "tpot_seconds": spread(
            [
                (answer.times[-1] - answer.times[0]) / (answer.completion_tokens - 1)
                for answer in good
                if answer.completion_tokens > 1
            ]
        ),
        "itl_seconds": spread(
            [b - a for answer in good for a, b in zip(answer.times, answer.times[1:], strict=False)]
        ),
        "latency_seconds": spread([answer.times[-1] for answer in good]),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median and 99th percentile (linear, as numpy's default); None of nothing."""
    import numpy

    if not values:
        return None
    return {
        "mean": round(float(numpy.mean(values)), 6),
        "median": round(float(numpy.median(values)), 6),
        "p99": round(float(numpy.percentile(values, 99)), 6),
    }


def speculation(before: Speculation | None, after: Speculation | None) -> dict[str, Any] | None:
    """What was drafted between two readings of the counters; None without speculation.

    tokens_per_pass: of one stream, 1 + accepted / drafts, since a forward pass of the target
    verifies one draft of each stream and adds a token of its own.
    """
    if before is None or after is None:
        return None
    counts = after.since(before)
    return {
        "drafts": counts.drafts,
        "drafted": counts.drafted,
        "accepted": counts.accepted,
        "acceptance": None if counts.acceptance is None else round(counts.acceptance, 4),
        "tokens_per_pass": round(1 + counts.accepted / counts.drafts, 4) if counts.drafts else None,
    }


def summary(repetitions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over repetitions of what one compares; `deviation` is the sample standard deviation of
    the rate, null for one repetition."""
    import statistics

    rates = [one["output_tokens_per_second"] for one in repetitions]
    told: dict[str, Any] = {
        "output_tokens_per_second": round(statistics.fmean(rates), 3),
        "deviation": round(statistics.stdev(rates), 3) if len(rates) > 1 else None,
    }
    for name in SPREADS:
        given = [one[name] for one in repetitions if one[name] is not None]
        told[name] = {
            key: round(statistics.fmean([one[key] for one in given]), 6) for key in given[0]
        } if given else None  # fmt: skip
    drafts = [one["speculation"] for one in repetitions if one.get("speculation")]
    total = {key: sum(d[key] for d in drafts) for key in ("drafts", "drafted", "accepted")}
    told["acceptance"] = (
        round(total["accepted"] / total["drafted"], 4) if total["drafted"] else None
    )
    told["tokens_per_pass"] = (
        round(1 + total["accepted"] / total["drafts"], 4) if total["drafts"] else None
    )
    watts = [sum(g["watts"] or 0 for g in one["gpus"]) for one in repetitions if one.get("gpus")]
    told["watts"] = round(statistics.fmean(watts), 1) if watts else None
    told["failed"] = sum(one["failed"] for one in repetitions)
    return told
