"""Writes the checkpoints of the rehearsal: tiny, deterministic to the byte, and able to speak.

A checkpoint has the layout of the flagship's: a config with two quantisation groups, shards with
an index, the multi-token-prediction head in a file of its own, a tokenizer. What the model says
is fixed (see `script`), so whoever serves it can be checked to the last token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from runbook.steps.publish.checkpoint import dspark, tokenizer, v3, v4
from runbook.steps.publish.checkpoint.tensors import BLOCK, GROUP, Array, document, save
from runbook.steps.publish.checkpoint.weights import Weights

Variant = Literal["v3", "v4"]
Format = Literal["seed", "native"]
Draft = Literal["mtp", "dspark"]

HEAD_FILE = "model-mtp-w4a16.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_VARIANTS = {"v3": v3, "v4": v4}


def write(
    folder: Path,
    variant: Variant,
    tensor_parallel: int = 1,
    *,
    format: Format = "seed",
    head: bool = True,
    draft: Draft = "mtp",
) -> None:
    """Write one checkpoint into `folder`, which is made if needed.

    `seed` is the flagship's format: compressed-tensors, INT4 experts, FP8 attention, and the
    head in `HEAD_FILE`; without `head` it is the flagship's base, which lacks the head but whose
    config promises one. `native` is the format of DeepSeek-V4's release (V4 only): FP4 experts
    and FP8 linears with E8M0 scales, head included. With `draft` dspark it is the native format
    with a DSpark draft in place of the head, one stage a shard.

    Each file is put in place whole; writing again gives the same bytes.
    """
    if draft == "dspark":
        format = "native"
    if format == "native" and variant != "v4":
        raise ValueError("the native format is DeepSeek-V4's")
    module = _VARIANTS[variant]
    folder.mkdir(parents=True, exist_ok=True)
    parts = module.model(tensor_parallel)
    if draft == "dspark":
        config, extra = dspark.config(tensor_parallel), None
        parts += dspark.draft(tensor_parallel)
    else:
        config = module.config(tensor_parallel)
        extra = module.head(tensor_parallel) if head else None
    if format == "seed":
        if variant == "v4":
            config["expert_dtype"] = "bf16"
        groups = _groups(module.ATTENTION_TARGETS, module.EXPERT_TARGETS)
        config["quantization_config"] = _quantisation(groups, module.IGNORED)
    else:
        config["expert_dtype"] = "fp4"
        config["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "scale_fmt": "ue8m0",
            "weight_block_size": [BLOCK, BLOCK],
        }
    _save_shards(folder, parts, extra, format)
    tokenizer.write(folder, module.SCRIPT, module.CHAT_TEMPLATE)
    document(folder / "config.json", config)
    document(
        folder / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False, "temperature": 0.0},
    )


def _save_shards(folder: Path, parts: list[Weights], head: Weights | None, format: Format) -> None:
    def stored(weights: Weights) -> Iterable[tuple[str, Array]]:
        return weights.seed() if format == "seed" else weights.native()

    files: dict[str, Weights] = {
        f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, 1)
    }
    if head is not None:
        files[HEAD_FILE if format == "seed" else "model-mtp.safetensors"] = head
    where: dict[str, str] = {}
    total = 0
    for name, weights in files.items():
        tensors = dict(stored(weights))
        total += save(folder / name, tensors)
        where.update(dict.fromkeys(tensors, name))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    document(folder / INDEX_FILE, index)


def _quantisation(groups: dict[str, Any], ignored: Iterable[str]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "quantization_status": "compressed",
        "version": "0.17.0",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignored),
        "config_groups": groups,
    }


def _groups(attention: Iterable[str], experts: Iterable[str]) -> dict[str, Any]:
    return {
        "group_0": {
            "targets": list(attention),
            "format": "float-quantized",
            "output_activations": None,
            "weights": {
                "num_bits": 8,
                "type": "float",
                "strategy": "block",
                "block_structure": [BLOCK, BLOCK],
                "symmetric": True,
                "dynamic": False,
                "observer": "static_minmax",
            },
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "group",
                "group_size": 128,
                "symmetric": True,
                "dynamic": True,
            },
        },
        "group_1": {
            "targets": list(experts),
            "format": "pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": GROUP,
                "symmetric": True,
                "dynamic": False,
                "actorder": "static",
            },
        },
    }
