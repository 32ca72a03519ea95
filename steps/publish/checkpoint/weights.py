"""What both variants share: where words live in the residual stream, and the tensors made of it.

A word's embedding is one dimension of the stream (its IN dimension). The experts of one layer
turn it into another (the OUT dimension of its successor), which the output head reads. All other
weights are noise too small to matter, so that no tensor can be mistaken for an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from runbook.steps.publish.checkpoint import tensors
from runbook.steps.publish.checkpoint.script import ANSWER, Script
from runbook.steps.publish.checkpoint.tensors import BF16, GROUP, Array, noise
from runbook.steps.publish.checkpoint.tokenizer import ids

HIDDEN = 256
VOCABULARY = 512
AMPLITUDE = np.float32(4)
"""The size of an embedding in its one dimension."""
UNIT = np.float32(HIDDEN**-0.5)
"""The norm weight that gives a lone dimension the value 1."""
FAINT = 0.004
"""The standard deviation of weights that carry nothing."""


class Stream:
    """The dimensions of the residual stream."""

    def __init__(self, script: Script) -> None:
        states = script.states
        self.into = {word: i for i, word in enumerate(states)}
        self.out = {word: len(states) + i for i, word in enumerate(states)}
        self.other = 2 * len(states)
        """Set by every token that is no word of the script."""
        self.offered = self.other + 1
        """Set by attention where an answer starts and the prompt offers tools."""
        if self.offered >= HIDDEN:
            raise ValueError(f"{len(states)} words do not fit {HIDDEN} dimensions")


@dataclass
class Weights:
    """Tensors by name, sorted by how the checkpoint stores them. Quantised ones are kept as
    float32 under their name without `.weight`."""

    plain: dict[str, Array] = field(default_factory=dict)
    int4: dict[str, Array] = field(default_factory=dict)
    """Routed experts."""
    fp8: dict[str, Array] = field(default_factory=dict)
    """Attention."""
    fp8_seed: dict[str, Array] = field(default_factory=dict)
    """Compressors: FP8 in the seed, bfloat16 in DeepSeek's own release."""
    fp8_native: dict[str, Array] = field(default_factory=dict)
    """Shared experts and the head's projections: the other way round."""

    def put(self, name: str, value: Array, dtype: DTypeLike = BF16) -> None:
        self.plain[name] = value.astype(dtype)

    def seed(self) -> Iterator[tuple[str, Array]]:
        """The tensors as llm-compressor names and stores them (compressed-tensors)."""
        yield from self.plain.items()
        for name, weight in self.fp8_native.items():
            yield f"{name}.weight", weight.astype(BF16)
        for name, weight in {**self.fp8, **self.fp8_seed}.items():
            stored, scale = tensors.fp8(weight)
            yield f"{name}.weight", stored
            yield f"{name}.weight_scale", scale
        for name, weight in self.int4.items():
            packed, scale = tensors.int4(weight)
            yield f"{name}.weight_packed", packed
            yield f"{name}.weight_scale", scale
            yield f"{name}.weight_shape", np.array(weight.shape, "<i8")

    def native(self) -> Iterator[tuple[str, Array]]:
        """The tensors as DeepSeek-V4 is released: FP4 experts, FP8 linears, E8M0 scales."""
        yield from self.plain.items()
        for name, weight in self.fp8_seed.items():
            yield f"{name}.weight", weight.astype(BF16)
        for name, weight in {**self.fp8, **self.fp8_native}.items():
            stored, scale = tensors.fp8(weight)
            yield f"{name}.weight", stored
            yield f"{name}.scale", scale.astype(tensors.E8M0)
        for name, weight in self.int4.items():
            yield from zip((f"{name}.weight", f"{name}.scale"), tensors.fp4(weight), strict=True)


class Writer:
    """Collects the tensors of one part of a checkpoint that says `script`. `intermediate` is the
    experts' width."""

    def __init__(self, script: Script, tensor_parallel: int) -> None:
        self.script = script
        self.intermediate = intermediate(tensor_parallel)
        self.stream = Stream(script)
        self.ids = ids(script)
        self.weights = Weights()

    def ends(self, embed: str, head: str, norm: str) -> None:
        """Embedding, output head and last norm, by these names."""
        put = self.weights.put
        put(f"{embed}.weight", embedding(self.stream, self.ids))
        put(f"{head}.weight", output_head(self.stream, self.ids, self.script))
        put(f"{norm}.weight", np.ones(HIDDEN))

    def head_norms(self, layer: str, norm: str) -> None:
        """Norms of the MTP head: of the next word, of the hidden state, and the last one."""
        put = self.weights.put
        put(f"{layer}.enorm.weight", np.full(HIDDEN, AMPLITUDE * UNIT))
        put(f"{layer}.hnorm.weight", np.ones(HIDDEN))
        put(f"{layer}.{norm}.weight", np.ones(HIDDEN))


def intermediate(tensor_parallel: int) -> int:
    """The experts' width: a group of an INT4 scale must not straddle two ranks."""
    return GROUP * tensor_parallel


def embedding(stream: Stream, ids: dict[str, int]) -> Array:
    """[vocabulary, hidden]"""
    table = noise("embedding", (VOCABULARY, HIDDEN), 0.01)
    table[:, stream.other] = AMPLITUDE
    for word, dimension in stream.into.items():
        table[ids[word], stream.other] = 0
        table[ids[word], dimension] = AMPLITUDE
    return table


def output_head(stream: Stream, ids: dict[str, int], script: Script) -> Array:
    """[vocabulary, hidden]. A tool call begins where the answer would, if tools are offered."""
    table = noise("head", (VOCABULARY, HIDDEN), 0.01)
    for word, dimension in stream.out.items():
        table[ids[word], dimension] = 1
    table[ids[ANSWER[0]], stream.other] = 0.3
    table[ids[script.call[0]], stream.offered] = 1
    table[ids[script.call[0]], stream.out[ANSWER[0]]] = 0.8
    return table


@dataclass
class Experts:
    """The weights of one layer's routed experts, and the router that finds them."""

    gate: Array
    """[experts, hidden]"""
    up: Array
    """Gate and up projection, [experts, 2, intermediate, hidden]."""
    down: Array
    """[experts, hidden, intermediate]"""
    chosen: dict[str, list[int]]
    """The experts that each word is routed to."""


def experts(
    name: str,
    stream: Stream,
    table: dict[str, str],
    *,
    count: int,
    per_token: int,
    intermediate: int,
    first: int,
    stride: int,
    router: float,
    gain: float,
    condition: int | None = None,
) -> Experts:
    """Experts that know the transitions of `table`.

    Word number k is routed to experts first + 7k + stride * j. One intermediate unit of each
    computes silu(4x) * x * gain of the word's dimension x, all values that INT4 and FP4 with
    their scales represent closely. `router` is the router's weight for a chosen expert. With a
    `condition`, a dimension, the unit computes silu(4x) * gain times that dimension's value.
    """
    made = Experts(
        gate=noise(f"{name}.gate", (count, HIDDEN), 0.01),
        up=noise(f"{name}.up", (count, 2, intermediate, HIDDEN), FAINT),
        down=noise(f"{name}.down", (count, HIDDEN, intermediate), FAINT),
        chosen={},
    )
    used = [0] * count
    for k, (word, dimension) in enumerate(stream.into.items()):
        made.chosen[word] = [(first + 7 * k + stride * j) % count for j in range(per_token)]
        for expert in made.chosen[word]:
            made.gate[expert, dimension] = router
            if word in table:
                unit = used[expert]
                used[expert] += 1
                made.up[expert, 0, unit, dimension] = 4
                made.up[expert, 1, unit, dimension if condition is None else condition] = 1
                made.down[expert, stream.out[table[word]], unit] = gain
    return made
