"""What a request takes of the KV cache of DeepSeek-V4, as vLLM 0.33.0 reckons it before it starts.

Follows `get_kv_cache_spec` of models/deepseek_v4 and `_get_packed_kv_cache_groups` of
v1/core/kv_cache_planning.py, for the layout fp8_ds_mla. Layers of the same kind share a block
table; a block is as large as the widest group of layers, and each group takes blocks of its own
from one pool. What slides (windows, states of compressors) is held for all tokens of the steps that
may be under way, so that a request's share grows with the tokens of a step, not its length alone.
Every rank holds all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runbook.steps.checkpoint.layout import dspark
from runbook.steps.checkpoint.layout.fields import Fields

ALIGNMENT = 576
"""Bytes to a multiple of which a page is rounded up."""
TOKEN_BYTES = 584
"""Of a token's latent: 448 of FP8, 64 rotated of 16 bits, 8 scales."""
BLOCK = 256
"""Tokens of a block."""
WINDOW_BLOCK = 64
STATE_BLOCKS = {4: 4, 128: 8}
"""Tokens of a block of a compressor's states, by its ratio."""
INDEX_SCALE = 4
STEPS_UNDER_WAY = 2
"""Scheduling is asynchronous: one step runs while the next is prepared."""


@dataclass(frozen=True)
class Bucket:
    """Layers of one kind: how many by the bytes of their pages, tokens of a page, and for what
    slides the tokens that must be held."""

    pages: Mapping[int, int]
    tokens: int
    window: int | None = None

    def blocks(self, length: int, step: int) -> int:
        if self.window is None:
            return -(-length // self.tokens)
        return -(-min(self.window - 1 + STEPS_UNDER_WAY * step, length) // self.tokens) + 1

    @property
    def layers(self) -> int:
        return max(self.pages.values())

    @property
    def balanced(self) -> bool:
        return len(set(self.pages.values())) == 1


def request_bytes(config: Mapping[str, Any], length: int, step: int) -> int:
    """Bytes of a rank's KV cache that a request of `length` tokens takes, where a step has `step`
    tokens at most (`max_num_batched_tokens`). Raises `ConfigError`."""
    buckets = _buckets(Fields(config))
    repeats = _repeats(buckets)
    blocks, widest = 0, 0
    for bucket in buckets:
        split = bool(repeats) and bucket.balanced
        groups = -(-bucket.layers // repeats) if split else 1
        blocks += groups * bucket.blocks(length, step)
        width = sum(page * -(-count // groups) for page, count in bucket.pages.items())
        widest = max(widest, width)
    return blocks * widest


def _buckets(c: Fields) -> list[Bucket]:
    ratios = c.numbers("compress_ratios")
    layers = c.num_hidden_layers
    if dspark.describes(c.config, ()):
        drafts = dspark.stages(c)
    else:
        drafts = c.count("num_nextn_predict_layers")
    ratios = (ratios + [0] * drafts)[: layers + drafts]
    found = [
        Bucket({_page(WINDOW_BLOCK * TOKEN_BYTES): len(ratios)}, WINDOW_BLOCK, c.sliding_window)
    ]
    whole: Counter[int] = Counter()
    for ratio in ratios:
        if ratio > 1:
            whole[_page(BLOCK // ratio * TOKEN_BYTES)] += 1
        if ratio == 4:
            whole[_page(BLOCK // ratio * (c.index_head_dim + INDEX_SCALE))] += 1
    found.append(Bucket(whole, BLOCK))
    for ratio, tokens in STATE_BLOCKS.items():
        overlap = 2 if ratio == 4 else 1
        heads = [c.head_dim, *([c.index_head_dim] if ratio == 4 else [])]
        # Keys and scores of each token, in 32 bits.
        pages = Counter(
            {_page(tokens * 2 * overlap * head * 4): ratios.count(ratio) for head in heads}
        )
        found.append(Bucket(pages, tokens, overlap * ratio))
    return [bucket for bucket in found if bucket.pages and bucket.layers]


def _page(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _repeats(buckets: list[Bucket]) -> int:
    """Layers of one group where kinds of layers repeat, such that least is padded; 0 if none do."""
    balanced = [bucket for bucket in buckets if bucket.balanced]
    least = max((b.layers for b in balanced if len(b.pages) > 1), default=0)
    if not least:
        return 0
    counts = [bucket.layers for bucket in balanced]
    choices = range(least, max(counts) + 1)
    return min(choices, key=lambda d: (sum(-count % d for count in counts), -d), default=least)
