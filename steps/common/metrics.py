"""Prometheus' text format, as far as counters are concerned, and vLLM's speculation counters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

SAMPLE = re.compile(
    r"""(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    (?:\{(?P<labels>(?:[^"}]|"(?:\\.|[^"\\])*")*)\})?
    [ \t]+(?P<value>[^ \t]+)(?:[ \t]+-?\d+)?[ \t]*""",
    re.VERBOSE,
)
"""One sample (https://prometheus.io/docs/instrumenting/exposition_formats/): name, labels, value
and an optional time stamp. A label's value may hold braces, so it is matched as a string."""

DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
STEPS = "vllm:iteration_tokens_total_count"
KV_CACHE = "vllm:kv_cache_usage_perc"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
ACCEPTED_AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"


def counter(text: str, name: str) -> float | None:
    """The sum of a counter over all its label sets (engines, models); None if it is not exposed.

    The name must match exactly: `..._created` holds a time stamp, `..._per_pos_total` another
    count, and `num_drafts` counts drafting steps where `num_draft_tokens` counts tokens.
    """
    values = [
        float(match["value"])
        for line in text.splitlines()
        if line.startswith(name)
        and (match := SAMPLE.fullmatch(line)) is not None
        and match["name"] == name
    ]
    return sum(values) if values else None


def by_label(text: str, name: str, label: str) -> dict[str, float]:
    """A counter's sums by the value of one of its labels, those of its other labels together."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith(name) or (match := SAMPLE.fullmatch(line)) is None:
            continue
        if match["name"] == name and (
            at := re.search(rf'(?:^|,){label}="([^"]*)"', match["labels"] or "")
        ):
            found[at[1]] = found.get(at[1], 0.0) + float(match["value"])
    return found


def engine_steps(text: str) -> int:
    """A number that is another after each step of the engine that did something.

    The count of steps alone would not do: vllm/v1/engine/async_llm.py counts those with outputs,
    and the chunks of one long prompt have none. They take room in the KV cache, which is told
    after every step (vllm/v1/core/sched/scheduler.py: `stats even if there are no outputs`).
    """
    return int(counter(text, STEPS) or 0) + int((counter(text, KV_CACHE) or 0) * 1e9)


@dataclass(frozen=True, slots=True)
class Speculation:
    """Counts of tokens since the server's start, or between two moments."""

    drafts: int
    drafted: int
    accepted: int
    by_position: tuple[int, ...] = ()
    """Tokens accepted at each place of a draft, from the first."""

    @classmethod
    def read(cls, text: str) -> Speculation | None:
        """From the text of /metrics; None if the server does not speculate."""
        values = [counter(text, name) for name in (DRAFTS, DRAFTED, ACCEPTED)]
        if any(value is None for value in values):
            return None
        drafts, drafted, accepted = (int(value) for value in values if value is not None)
        places = by_label(text, ACCEPTED_AT, "position")
        at = sorted((int(place), int(count)) for place, count in places.items() if place.isdigit())
        return cls(drafts, drafted, accepted, tuple(count for _, count in at))

    def since(self, before: Speculation) -> Speculation:
        return Speculation(
            self.drafts - before.drafts,
            self.drafted - before.drafted,
            self.accepted - before.accepted,
            tuple(
                now - then
                for now, then in zip_longest(self.by_position, before.by_position, fillvalue=0)
            ),
        )

    @property
    def acceptance(self) -> float | None:
        """Accepted per drafted token; None if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that a forward pass of the target gives each sequence: its own and those accepted,
        as vLLM's `Mean acceptance length`. None if nothing was drafted."""
        return 1 + self.accepted / self.drafts if self.drafts else None

    @property
    def acceptance_by_position(self) -> list[float]:
        """The share of drafts that were accepted up to each place; empty if there were none."""
        return [count / self.drafts for count in self.by_position] if self.drafts else []
