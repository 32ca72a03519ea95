"""How many ranks hold a model, by arithmetic: weights, KV cache and what the work itself takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runbook.steps.checkpoint.layout.fields import Fields
from runbook.steps.checkpoint.quantization import Quantization
from runbook.steps.new.kv import Cache
from runbook.steps.new.machine import GIB, Machine
from runbook.steps.new.model import Model

UTILIZATION = 0.92
"""The share of a card that vLLM takes: a display and the driver want the rest."""
CONTEXT = 2 * GIB
"""Of a rank: CUDA's own, the communicators, the captured graphs."""
ROWS = 16
"""Vectors of the hidden size that are alive at once for each token of a batch."""
LARGE_CARD = 40 * GIB
BATCHED = {"large": 8192, "small": 2048}
PROCESSES = 3 * GIB
"""Of vLLM's processes on a CPU, without weights and cache (measured)."""
CPU_SPARE = 1.25
"""vLLM rounds requests up to blocks, and keeps one block for itself."""
LEAST_CPU_CACHE = 256 << 20


@dataclass(frozen=True)
class Need:
    """Bytes that each rank needs."""

    weights: int
    cache: int
    work: int

    @property
    def all(self) -> int:
        return self.weights + self.cache + self.work

    def words(self) -> str:
        return (
            f"{self.weights / GIB:.1f} GiB of weights, {self.cache / GIB:.1f} of KV cache, "
            f"{self.work / GIB:.1f} for the work"
        )


@dataclass(frozen=True)
class Wish:
    """What the server is for."""

    users: int
    context: int


def batched(machine: Machine) -> int:
    """Tokens of one step: more of them fill a large card better."""
    large = machine.gpus and machine.gpu_memory >= LARGE_CARD
    return BATCHED["large" if large else "small"]


def need(model: Model, cache: Cache, wish: Wish, tokens: int, ranks: int) -> Need:
    c = Fields(model.config)
    hidden = c.count("hidden_size")
    wide = max(c.count("intermediate_size"), c.count("moe_intermediate_size"))
    work = CONTEXT + 2 * tokens * (ROWS * hidden + 4 * wide // ranks)
    kept = wish.users * cache.request(wish.context, tokens, ranks)
    return Need(-(-model.weights // ranks), kept, work)


def room(machine: Machine) -> int:
    """Bytes of a card that vLLM may take."""
    return int(machine.gpu_memory * UTILIZATION)


def divides(model: Model, ranks: int) -> str:
    """Why the model cannot be divided among so many ranks; "" if it can."""
    c = Fields(model.config)
    heads, groups = c.count("num_attention_heads"), c.count("o_groups")
    if heads % ranks:
        return f"{heads} attention heads"
    if groups % ranks:
        return f"{groups} output groups"
    shared = c.count("num_key_value_heads")
    if shared and not c.count("kv_lora_rank") and shared % ranks and ranks % shared:
        return f"{shared} KV heads"
    group = _group(model)
    for name in ("intermediate_size", "moe_intermediate_size"):
        size = c.count(name)
        if group > 1 and size and (size % ranks or size // ranks % group):
            return f"{name} {size} in groups of {group}"
    return ""


def _group(model: Model) -> int:
    """Columns that share a scale, which no rank's slice may cut; 1 if there are none."""
    config = model.checkpoint.quantization
    blocks = config.get("weight_block_size")
    sizes = [size for size in blocks if type(size) is int] if isinstance(blocks, list) else []
    found = config.get("group_size")
    sizes += [found] if type(found) is int else []
    return max([1, *sizes, Quantization(config).int4_group or 1])


def candidates(model: Model, most: int) -> Iterator[int]:
    """Numbers of ranks that divide the model, the least first."""
    ranks = 1
    while ranks <= most:
        if not divides(model, ranks):
            yield ranks
        ranks *= 2


def cpu_cache(model: Model, cache: Cache, wish: Wish, tokens: int) -> int:
    """Bytes of the KV cache to ask for on a CPU, in whole MiB."""
    kept = int(wish.users * cache.request(wish.context, tokens, 1) * CPU_SPARE)
    return max(LEAST_CPU_CACHE, -(-kept >> 20 << 20) if kept > 0 else 0)
