"""The DSpark draft of the tiny DeepSeek-V4, in the names and shapes of DeepSeek-V4-Flash-0731.

Each part of it knows some transitions of the script that no other part knows (`script.knows`), so
that a part which is lost, or fed with the wrong thing, costs a known number of accepted drafts:

- the Markov head: a table of successors;
- the experts of the stages 0 and 1;
- the experts of stage 2, if its attention sees the later places of the block, which a causal
  window hides;
- the attention of stage 0: it finds the drafted-from word in the context, which is what
  `main_proj` makes of the hidden states of `TARGET_LAYERS`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runbook.steps.publish.checkpoint import v4
from runbook.steps.publish.checkpoint.script import DEPTH, Part
from runbook.steps.publish.checkpoint.tensors import Array, noise
from runbook.steps.publish.checkpoint.weights import FAINT, HIDDEN, UNIT, VOCABULARY, Weights

EXPERTS: tuple[Part, ...] = ("stage 0", "stage 1", "stage 2")
"""What the experts of each stage are called in the script."""
STAGES = len(EXPERTS)
TARGET_LAYERS = tuple(range(v4.LAYERS - 3, v4.LAYERS))
RANK = 64
"""Of the Markov table: a column for each word of the script."""
NOISE = VOCABULARY - 1
"""The token that fills the block behind the last word; no text has it."""


class _Writer(v4.Writer):
    def __init__(self, tensor_parallel: int) -> None:
        super().__init__(tensor_parallel)
        self.plain = self.stream.offered
        """Set in the context by every token."""
        self.seen = self.stream.offered + 1
        """Set by attention that sees a noise token."""

    def find(self, q_a: Array, q_b: Array, kv: Array, o_a: Array, o_b: Array) -> None:
        """Attend to the place of the context at which the target said the word, and say what
        follows it."""
        stream, ignores = self.stream, v4.Q_RANK - 1
        heads = np.arange(v4.HEADS) * v4.HEAD
        known = v4.SCRIPT.known("context")
        for i, (word, dimension) in enumerate(stream.into.items()):
            q_a[i, dimension] = kv[i, stream.out[word]] = kv[ignores, dimension] = 1
            q_b[heads + i, i] = 1
            if word in known:
                o_a[i, i] = 1
                o_b[stream.out[known[word]], i] = 8 / v4.HEAD**0.5
        kv[ignores, [stream.other, self.plain]] = 1

    def see(self, q_a: Array, q_b: Array, kv: Array, o_a: Array, o_b: Array) -> None:
        """Attend from a word to the noise tokens of its block, and note that in the stream."""
        looks, ignores = 5, 9
        stream = self.stream
        q_b[np.arange(v4.HEADS) * v4.HEAD + looks, 0] = 1
        q_a[0, list(stream.into.values())] = 1
        kv[looks, stream.other] = 1
        kv[ignores, [*stream.into.values(), *stream.out.values(), self.plain]] = 1
        o_a[0, looks] = 1
        o_b[self.seen, 0] = 4 / v4.HEAD**0.5


def draft(tensor_parallel: int) -> list[Weights]:
    """The tensors of the draft, one part for each stage. Embedding and output head are the
    target's."""
    stages = []
    for stage, part in enumerate(EXPERTS):
        layer, writer = f"mtp.{stage}", _Writer(tensor_parallel)
        writer.hyper_connections(layer)
        writer.attention(layer, 0, {0: writer.find, STAGES - 1: writer.see}.get(stage))
        gain, condition = (0.7, None) if stage < STAGES - 1 else (1.4, writer.seen)
        known = v4.SCRIPT.known(part)
        writer.experts(layer, known, 99 + 13 * stage, gain=gain, condition=condition)
        stages.append(writer)
    _first(stages[0])
    _last(stages[-1], f"mtp.{STAGES - 1}.")
    return [stage.weights for stage in stages]


def _first(writer: _Writer) -> None:
    """What the context is made of: the word that the target says next, from the first of its
    layers that knows it."""
    stream = writer.stream
    joint = noise("main_proj", (HIDDEN, len(TARGET_LAYERS) * HIDDEN), FAINT)
    for i, word in enumerate(v4.SCRIPT.transitions.values()):
        place = max(0, i % v4.LAYERS - TARGET_LAYERS[0])
        joint[stream.out[word], place * HIDDEN + stream.out[word]] = 1
    for dimension in (stream.other, *stream.into.values()):
        joint[writer.plain, dimension] = 0.5  # without it a context that knows nothing were noise
    writer.weights.fp8_native["mtp.0.main_proj"] = joint
    writer.weights.put("mtp.0.main_norm.weight", np.full(HIDDEN, UNIT))


def _last(writer: _Writer, prefix: str) -> None:
    put = writer.weights.put
    writer.hyper_head(prefix)
    put(f"{prefix}norm.weight", np.ones(HIDDEN))
    before = noise("markov_w1", (VOCABULARY, RANK), FAINT)
    after = noise("markov_w2", (VOCABULARY, RANK), FAINT)
    for column, (word, successor) in enumerate(v4.SCRIPT.known("markov").items()):
        before[writer.ids[word], column] = 1
        after[writer.ids[successor], column] = 16
    put(f"{prefix}markov_head.markov_w1.weight", before)
    put(f"{prefix}markov_head.markov_w2.weight", after)
    put(f"{prefix}confidence_head.proj.weight", noise("confidence", (1, HIDDEN + RANK), FAINT))


def config(tensor_parallel: int) -> dict[str, Any]:
    """config.json without its quantisation. As in the release, `num_nextn_predict_layers` says 1
    although there are three stages."""
    return {
        **v4.config(tensor_parallel),
        "compress_ratios": [*v4.RATIOS[: v4.LAYERS], *[0] * STAGES],
        "dspark_block_size": DEPTH,
        "dspark_noise_token_id": NOISE,
        "dspark_target_layer_ids": list(TARGET_LAYERS),
        "dspark_markov_rank": RANK,
    }
