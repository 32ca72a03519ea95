"""The KV cache by arithmetic: bytes that a rank keeps of one request.

Follows vLLM 0.33.0 (`v1/kv_cache_interface.py`, `models/deepseek_v4`): a layer with full attention
keeps every token; one with a window keeps the window and the tokens in flight, up to two batches of
`max_num_batched_tokens`; multi-head latent attention (MLA) keeps one vector, on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runbook.steps.checkpoint.layout.fields import ConfigError, Fields
from runbook.steps.new.model import Model

BATCHES_IN_FLIGHT = 2
"""Of the scheduler, which prepares a step while one runs (`VllmConfig.max_concurrent_batches`)."""
BYTES = 2
"""Of a number of the cache: BF16, unless an FP8 cache is asked for."""
FP8_DS_MLA = 584
"""Bytes of a vector in DeepSeek-V4's cache: 448 of FP8, 64 of BF16, 8 of scales."""
STATE_BYTES = 4
"""The compressor keeps what it has not compressed yet in FP32."""
PAGE = 64
"""States in a page of a layer of 1 in 4: 256 tokens. The compressors' pages are as large."""
STATE_BLOCKS = {4: 4, 128: 8}
"""Tokens in a page of a compressor, by its ratio."""
V4_SPARE = 1.15
"""Of what is reckoned for DeepSeek-V4: servers reported 7 to 20 % more a request (two H200 with
0.33.0, two RTX PRO 6000 with 0.25.1)."""
FULL = ("full_attention", "attention")
WINDOWED = ("sliding_attention", "chunked_attention")
OTHER_MARKS = ("mamba", "ssm_", "linear_", "rwkv", "hybrid_override_pattern",
               "layers_block_type", "block_configs", "attn_type_list", "recurrent")  # fmt: skip
"""Fields of models that keep something else than keys and values in some layers."""


class NotKnown(Exception):
    """The cache of this model is not known here; the message says why."""


@dataclass(frozen=True)
class Part:
    """What some layers keep alike: `size` bytes for each `tokens` tokens and of each head.
    `window`: only of so many tokens and those in flight. `heads` are divided among ranks."""

    what: str
    layers: int
    size: int
    tokens: int = 1
    window: int | None = None
    heads: int | None = None

    def request(self, length: int, batched: int, ranks: int) -> int:
        if self.window is not None:
            length = min(length, self.window - 1 + BATCHES_IN_FLIGHT * batched)
        heads = 1 if self.heads is None else max(1, math.ceil(self.heads / ranks))
        return self.layers * heads * self.size * math.ceil(length / self.tokens)


@dataclass(frozen=True)
class Cache:
    """The KV cache of a model."""

    parts: tuple[Part, ...]
    spare: float = 1.0

    def request(self, length: int, batched: int, ranks: int) -> int:
        """Bytes that a rank keeps of a request of `length` tokens."""
        return int(self.spare * sum(p.request(length, batched, ranks) for p in self.parts))

    def words(self) -> str:
        return "; ".join(part.what for part in self.parts)


def stated(per_token: int) -> Cache:
    """A cache of which the user says how large it is, on each rank."""
    return Cache((Part(f"{per_token:,} bytes a token, as told", 1, per_token),))


def cache(model: Model) -> Cache:
    """Raises `NotKnown`."""
    config = model.config
    try:
        if "DeepseekV4ForCausalLM" in model.architectures:
            return Cache(tuple(_deepseek_v4(Fields(config))), V4_SPARE)
        if config.get("compress_ratios"):
            raise NotKnown("its compressed attention is not DeepSeek-V4's")
        if config.get("kv_lora_rank"):
            return Cache(tuple(_latent(Fields(config))))
        return Cache(tuple(_heads(Fields(config))))
    except ConfigError as problem:
        raise NotKnown(f"config.json: {problem}") from problem


def _deepseek_v4(c: Fields) -> Iterator[Part]:
    ratios = c.numbers("compress_ratios")
    layers, window = c.num_hidden_layers, c.sliding_window
    drafts = max(0, len(ratios) - layers)
    yield Part(f"{layers + drafts} windows of {window}", layers + drafts, FP8_DS_MLA, 1, window)
    for ratio in sorted(set(ratios[:layers]) - {0, 1}):
        if ratio not in STATE_BLOCKS:
            raise NotKnown(f"a compression of 1 in {ratio} is not DeepSeek-V4's")
        count = ratios[:layers].count(ratio)
        yield Part(f"{count} layers of 1 in {ratio}", count, FP8_DS_MLA, ratio)
        yield Part(f"{count} compressors", *_states(count, ratio, c.head_dim, FP8_DS_MLA))
        if ratio == 4:
            size = c.index_head_dim + 4
            yield Part(f"{count} indexers", count, size, ratio)
            told = f"{count} compressors of indexers"
            yield Part(told, *_states(count, ratio, c.index_head_dim, size))


def _states(count: int, ratio: int, wide: int, stored: int) -> tuple[int, int, int, int]:
    """Layers, bytes a token, tokens and window of what compressors keep, in pages as large as those
    of what they compress to; ratio 4 overlaps its windows."""
    overlap = 2 if ratio == 4 else 1
    page = PAGE * stored // STATE_BLOCKS[ratio]
    return count, max(overlap * 2 * wide * STATE_BYTES, page), 1, overlap * ratio


def _latent(c: Fields) -> Iterator[Part]:
    layers = c.num_hidden_layers + c.count("num_nextn_predict_layers")
    width = c.kv_lora_rank + c.qk_rope_head_dim
    yield Part(f"{layers} layers x {width} x {BYTES} bytes a token", layers, width * BYTES)
    if c.count("index_head_dim"):
        yield Part(f"{layers} indexers", layers, c.index_head_dim + 4)


def _heads(c: Fields) -> Iterator[Part]:
    config = c.config
    strange = sorted(k for k in config for mark in OTHER_MARKS if str(k).startswith(mark))
    if strange and _set(config, strange):
        raise NotKnown(f"some layers keep something else than keys and values ({strange[0]})")
    layers = c.num_hidden_layers
    heads = c.count("num_key_value_heads") or c.count("num_kv_heads") or c.num_attention_heads
    wide = c.count("head_dim") or c.hidden_size // c.num_attention_heads
    size = 2 * wide * BYTES
    kinds = config.get("layer_types")
    windowed = 0
    if isinstance(kinds, list) and kinds:
        if others := sorted({str(k) for k in kinds} - {*FULL, *WINDOWED}):
            raise NotKnown(f"it has layers of {', '.join(others)[:60]}")
        windowed = sum(kind in WINDOWED for kind in kinds[:layers])
    window = c.count("sliding_window") or c.count("attention_chunk_size")
    if not window:
        windowed = 0
    words = f"2 x {heads} KV heads x {wide} x {BYTES} bytes a token"
    if layers > windowed:
        yield Part(f"{layers - windowed} layers x {words}", layers - windowed, size, heads=heads)
    if windowed:
        told = f"{windowed} layers x {words}, {window} of them"
        yield Part(told, windowed, size, 1, window, heads)


def _set(config: Mapping[str, Any], names: list[str]) -> bool:
    return any(config.get(name) not in (None, False, 0, [], {}) for name in names)
