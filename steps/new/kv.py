"""The KV cache by arithmetic: bytes that a rank keeps of one request.

Follows vLLM 0.33.0 (`v1/kv_cache_interface.py`): a layer with full attention keeps every token; one
with a window keeps the window and the tokens in flight, up to two batches of
`max_num_batched_tokens`; multi-head latent attention (MLA) keeps one vector, on every rank.
DeepSeek-V4's own is in `kv_cache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from runbook.steps.checkpoint import kv_cache
from runbook.steps.checkpoint.layout.fields import ConfigError, Fields
from runbook.steps.new.model import Model

BATCHES_IN_FLIGHT = 2
"""Of the scheduler, which prepares a step while one runs (`VllmConfig.max_concurrent_batches`)."""
BYTES = 2
"""Of a number of the cache: BF16, unless an FP8 cache is asked for."""
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
    """The KV cache of a model: its parts, or what a module of its own reckons."""

    parts: tuple[Part, ...]
    reckoned: Callable[[int, int], int] | None = None

    def request(self, length: int, batched: int, ranks: int) -> int:
        """Bytes that a rank keeps of a request of `length` tokens."""
        if self.reckoned is not None:
            return self.reckoned(length, batched)
        return sum(part.request(length, batched, ranks) for part in self.parts)

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
            kv_cache.request_bytes(config, 1, 1)  # whether its config tells it all
            told = Part("windows, compressed layers, indexers and compressors' states", 0, 0)
            return Cache((told,), partial(kv_cache.request_bytes, config))
        if config.get("compress_ratios"):
            raise NotKnown("its compressed attention is not DeepSeek-V4's")
        if config.get("kv_lora_rank"):
            return Cache(tuple(_latent(Fields(config))))
        return Cache(tuple(_heads(Fields(config))))
    except ConfigError as problem:
        raise NotKnown(f"config.json: {problem}") from problem


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
