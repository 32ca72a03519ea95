"""The DSpark draft of DeepSeek-V4: what its stages have besides the tensors of a layer.

Names and shapes as `vllm/models/deepseek_v4/nvidia/dspark.py` of vLLM 0.33.0 reads them. A stage is
a layer of the target without compressor; embedding and head are the target's. How many stages there
are is `n_mtp_layers`, else three: `num_nextn_predict_layers` says nothing about it (it is 1 in
DeepSeek-V4-Flash-0731, which has three).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from runbook.steps.checkpoint.layout.fields import Fields
from runbook.steps.checkpoint.layout.model import Builder

DEFAULT_STAGES = 3
MARK = "mtp.0.main_proj.weight"
"""A tensor that every DSpark draft has and no MTP block."""
LAYER_IDS = "dspark_target_layer_ids"
BLOCK = "dspark_block_size"
NOISE = "dspark_noise_token_id"
CONFIDENCE = "confidence_head.proj.weight"


def describes(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether the draft of this checkpoint is DSpark, by its fields or else its tensors."""
    return any(str(key).startswith("dspark_") for key in config) or MARK in names


def stages(c: Fields) -> int:
    """How many stages vLLM builds."""
    return c.count("n_mtp_layers") or DEFAULT_STAGES


def stages_stored(names: Collection[str]) -> set[int]:
    """The stages of which there is at least one tensor."""
    return {int(m[1]) for name in names if (m := re.match(r"mtp\.(\d{1,9})\.", name))}


def first(b: Builder, c: Fields) -> None:
    """What takes the target's hidden states of some layers in."""
    hidden = c.hidden_size
    b.linear("main_proj", hidden, hidden * len(c.numbers(LAYER_IDS)), "joint")
    b.plain("main_norm.weight", hidden)


def last(b: Builder, c: Fields) -> None:
    """The final norm, the table of successors, and the head that tells how sure it is."""
    rank = c.dspark_markov_rank
    b.plain("norm.weight", c.hidden_size)
    b.plain("markov_head.markov_w1.weight", c.vocab_size, rank)
    b.plain("markov_head.markov_w2.weight", c.vocab_size, rank)
    if c.config.get("enable_confidence_head", True):
        b.plain(CONFIDENCE, 1, c.hidden_size + rank)
        b.into.optional.add(b.prefix + CONFIDENCE)
