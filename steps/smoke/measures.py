"""Checks that count and time: accepted drafts, time to the first token, decode rate."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

from runbook.steps.common.metrics import Speculation
from runbook.steps.smoke.client import Client
from runbook.steps.smoke.findings import Findings, from_model, from_serve


def speculation(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """Tokens are drafted and accepted, counted by the difference of the server's counters."""
    case = inputs.speculation
    before = Speculation.read(client.settled_metrics())
    for prompt in case["prompts"]:
        client.chat(case | {"prompt": prompt})
    after = Speculation.read(client.settled_metrics())
    if before is None or after is None:
        found.fail(
            "speculation_off",
            "draft",
            "the server does not speculate: /metrics has no spec_decode counters",
            from_serve("set `speculative_config` of the serve step, then {command}"),
        )
        return
    counts = after.since(before)
    acceptance = counts.acceptance
    places = [round(share, 4) for share in counts.acceptance_by_position]
    told = f"; by position {', '.join(f'{share:.0%}' for share in places)}" if places else ""
    found.note(f"{counts.accepted} of {counts.drafted} drafted tokens accepted{told}")
    found.measured |= {
        "drafted": counts.drafted,
        "accepted": counts.accepted,
        "acceptance": None if acceptance is None else round(acceptance, 4),
        "acceptance_by_position": places,
        "tokens_per_step": None
        if counts.tokens_per_step is None
        else round(counts.tokens_per_step, 3),
    }
    if acceptance is None:
        found.fail("nothing_drafted", "draft", "no token was drafted", from_serve())
        return
    want = case["expect"]
    if want is not None and (counts.drafted, counts.accepted) != (
        want["drafted"],
        want["accepted"],
    ):
        found.fail(
            "draft_counts_differ",
            "draft",
            f"{counts.accepted} of {counts.drafted} drafted tokens were accepted, "
            f"expected {want['accepted']} of {want['drafted']}",
            from_model(
                "if no one else asked the server meanwhile, the MTP head is damaged: {command}"
            ),
        )
    least = case["min_acceptance"]
    if least is not None and acceptance < least:
        found.fail(
            "acceptance_low",
            "draft",
            f"{acceptance:.1%} of the drafted tokens were accepted, expected {least:.1%} or more",
            from_model("the MTP head, its embedding or its quantisation is damaged: {command}"),
        )


def speed(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """Time to the first token, and decode rate, of a single stream."""
    case = inputs.speed
    more = {"ignore_eos": True} if case["ignore_eos"] else {}
    timings = [client.stream(case, **more)[1] for _ in range(case["repetitions"])]
    ttft = statistics.median(t.ttft for t in timings)
    rates = [r for t in timings if (r := t.decode_tokens_per_second) is not None]
    rate = statistics.median(rates) if rates else None
    found.measured |= {
        "ttft_seconds": round(ttft, 4),
        "decode_tokens_per_second": None if rate is None else round(rate, 2),
    }
    found.note(f"{rate or 0:.1f} tokens/s, first after {ttft:.3f} s, of {len(timings)}")
    least, longest, because = _limits(case)
    if least is not None and (rate is None or rate < least):
        found.fail(
            "decode_slow",
            "speed",
            f"decodes {rate or 0:.1f} tokens/s, expected {least:g} or more{because}",
            "look for another load on the GPUs (`nvidia-smi`), a power cap, or eager mode",
        )
    if longest is not None and ttft > longest:
        found.fail(
            "first_token_slow",
            "speed",
            f"the first token takes {ttft:.2f} s, expected {longest:g} s or less{because}",
            "look for another load, or other NCCL settings in the serve step's `env`",
        )


def _limits(case: dict[str, Any]) -> tuple[float | None, float | None, str]:
    """The least rate, the longest time to the first token, and what they are held against: what is
    given for itself, and the reference of such cards."""
    rates, times = [case["min_decode_tokens_per_second"]], [case["max_ttft_seconds"]]
    because = ""
    if (known := case["reference"]) is not None:
        if (rate := known["tokens_per_second"]) is not None:
            rates.append(round(rate * case["least_share"], 2))
        if (first := known["ttft_seconds"]) is not None:
            times.append(round(first * case["most_times"], 3))
        reached = [f"{rate:g} tokens/s"] if rate is not None else []
        reached += [f"{first:g} s"] if first is not None else []
        because = f" ({' and '.join(reached)} on such cards by {known['source']})"
    given = [value for value in rates if value is not None]
    allowed = [value for value in times if value is not None]
    return max(given, default=None), min(allowed, default=None), because
