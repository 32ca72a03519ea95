"""The tiny language model as text, tokenizer and checkpoints: what surrounds its training.

The text is the source of Python's standard library, which is on every machine that can run this;
one module in `HELD_EVERY` is held out, for prompts that training and calibration have not seen.
"""

from __future__ import annotations

import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runbook.steps.checkpoint.layout import layout
from runbook.steps.publish import checkpoint as published
from runbook.steps.publish.checkpoint import tokenizer, v3
from runbook.steps.publish.checkpoint.script import BOS, Script
from runbook.steps.publish.checkpoint.tensors import BF16, document
from runbook.steps.publish.checkpoint.weights import Weights

LAYERS = 2
CONFIG: dict[str, Any] = {
    **v3.config(1),
    "vocab_size": 320,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    # YaRN by a factor of 1 changes no number. Without it vLLM 0.32 turns to its C++ operator, which
    # takes the strided queries of latent attention for contiguous ones.
    "rope_scaling": {
        "type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
HEAD = f"model.layers.{LAYERS}."
EXPERTS = f"{HEAD}mlp.experts"
FP8 = ("self_attn.q_b_proj", "self_attn.kv_b_proj", "self_attn.o_proj")
HELD_EVERY = 8
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"


class Bytes(Script):
    """A vocabulary without words: special tokens and bytes."""

    @property
    def words(self) -> tuple[str, ...]:
        return ()


BYTES = Bytes(call=())


def describe(path: Path) -> None:
    """Write what training needs to know of the model: its config, and the shapes of its weights."""
    found = layout(CONFIG)
    shapes = {f"{linear.base}.weight": linear.shape for linear in found.linears.values()}
    shapes |= {plain.name: plain.shape for plain in found.plains.values()}
    document(path, {"config": CONFIG, "shapes": shapes})


def modules() -> tuple[list[str], list[str]]:
    """Sources for training and held-out ones, in the order of their names."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text() for path in paths]
    texts = [text for text in texts if text.isascii()]
    held = texts[::HELD_EVERY]
    return [text for i, text in enumerate(texts) if i % HELD_EVERY], held


def slices(texts: list[str], count: int, length: int, seed: int) -> list[str]:
    """`count` pieces of `length` characters, each from the beginning of some line; some overlap."""
    starts = [(i, at) for i, text in enumerate(texts) for at in _lines(text, length)]
    chosen = sorted(random.Random(seed).sample(starts, count))
    return [texts[i][at : at + length] for i, at in chosen]


def _lines(text: str, length: int) -> Iterator[int]:
    at = 0
    for line in text.splitlines(keepends=True):
        if line.strip() and at + length <= len(text):
            yield at
        at += len(line)


def write_prompts(path: Path, prompts: list[str]) -> None:
    """Write a file for the step capture; the same one stays, and so what was captured from it."""
    text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def read_weights(path: Path) -> tuple[list[Weights], Weights]:
    """What was trained: a part for each layer and the rest, and the MTP block."""
    parts: dict[str, Weights] = {}
    with np.load(path) as trained:
        for name in trained.files:
            prefix = ".".join(name.split(".")[:3]) + "." if ".layers." in name else ""
            _put(parts.setdefault(prefix, Weights()), name, trained[name])
    head = parts.pop(HEAD)
    return [part for _, part in sorted(parts.items())], head


def _put(into: Weights, name: str, value: Any) -> None:
    base = name.removesuffix(".weight")
    if ".mlp.experts." in name:
        into.int4[base] = value
    elif base.endswith(FP8):
        into.fp8[base] = value
    else:
        into.put(name, value, np.float32 if name.endswith("correction_bias") else BF16)


def upstream(folder: Path, parts: list[Weights], head: Weights) -> None:
    """The model with its head as released: FP4 experts, FP8 attention."""
    folder.mkdir(parents=True)
    published._save_shards(folder, parts, head, "native")
    document(folder / "config.json", CONFIG)


def base(folder: Path, parts: list[Weights], head: Weights | None = None) -> None:
    """The quantised model: INT4 experts, FP8 attention. Its head is left out, or has its experts
    in BF16 with the values that upstream's FP4 stands for."""
    folder.mkdir(parents=True)
    quantisation = published._quantisation(
        published._groups(v3.ATTENTION_TARGETS, v3.EXPERT_TARGETS), v3.IGNORED
    )
    if head is not None:
        quantisation["ignore"].append(f"re:{re.escape(EXPERTS)}.*")
        head = Weights(plain=dict(head.plain), fp8=head.fp8, int4=dict(head.int4))
        for name, value in head.int4.items():
            head.put(f"{name}.weight", value)
        head.int4.clear()
    published._save_shards(folder, parts, head, "seed")
    tokenizer.write(folder, BYTES, TEMPLATE)
    document(folder / "config.json", {**CONFIG, "quantization_config": quantisation})
    document(
        folder / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False, "temperature": 0.0},
    )


def prompt(text: str) -> str:
    """As the chat template gives it."""
    return BOS + text
