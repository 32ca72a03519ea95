"""DeepSeek-V4-Flash-0731 in full size, as headers alone: 48 files of the true lengths, all holes.

The distribution over files is that of the release as far as it is known: each of the last three
holds one stage of the draft.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runbook.steps.checkpoint.headers import ITEM_BITS, render
from runbook.steps.checkpoint.layout import Layout, Linear, layout

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_attention_heads": 64,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "hc_mult": 4,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "swiglu_limit": 10.0,
    "expert_dtype": "fp4",
    "num_nextn_predict_layers": 1,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0, 0, 0],
    "dspark_block_size": 5,
    "dspark_noise_token_id": 128799,
    "dspark_target_layer_ids": [40, 41, 42],
    "dspark_markov_rank": 256,
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}
FILES = 48
DTYPES = {"f32": "F32", "float": "BF16", "int": "I64"}
Entry = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape."""


def entries(found: Layout) -> dict[str, Entry]:
    """All tensors as the vendor stores them."""
    made: dict[str, Entry] = {}
    for plain in found.plains.values():
        made[plain.name] = (plain.name, DTYPES[plain.kind], plain.shape)
    for linear in found.linears.values():
        for entry in _stored(linear):
            made[entry[0]] = entry
    return made


def _stored(linear: Linear) -> list[Entry]:
    base, (out, columns) = linear.base, linear.shape
    if linear.role == "expert":
        scale = (out, columns // 32)
        return [
            (f"{base}.weight", "I8", (out, columns // 2)),
            (f"{base}.scale", "F8_E8M0", scale),
        ]
    if linear.role in ("compressor", "indexer_weights"):
        return [(f"{base}.weight", "BF16", linear.shape)]
    blocks = (-(-out // 128), -(-columns // 128))
    return [
        (f"{base}.weight", "F8_E4M3", linear.shape),
        (f"{base}.scale", "F8_E8M0", blocks),
    ]


def write(folder: Path, change: Callable[[dict[str, Entry]], object] = lambda made: None) -> int:
    """Write the checkpoint; returns the number of its tensors."""
    found = layout(CONFIG)
    made = entries(found)
    change(made)
    folder.mkdir(parents=True)
    shards: dict[str, list[Entry]] = {}
    for entry in made.values():
        shards.setdefault(_file(found, entry[0]), []).append(entry)
    for name, held in shards.items():
        sized = [(n, d, s, math.prod(s) * ITEM_BITS[d] // 8) for n, d, s in held]
        sized.sort(key=lambda e: -ITEM_BITS[e[1]])
        head = render(sized, {"format": "pt"})
        with (folder / name).open("wb") as file:
            file.write(head)
            file.truncate(len(head) + sum(nbytes for *_, nbytes in sized))
    index = {e[0]: name for name, held in shards.items() for e in held}
    total = sum(math.prod(s) * ITEM_BITS[d] // 8 for _, d, s in made.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return len(made)


def _file(found: Layout, name: str) -> str:
    layer = found.layer(name)
    number = int(layer.split(".")[1]) if layer else 0
    last = FILES - 3
    position = last + 1 + number if layer.startswith("mtp.") else 2 + number if layer else 1
    return f"model-{min(position, FILES):05}-of-{FILES:05}.safetensors"
