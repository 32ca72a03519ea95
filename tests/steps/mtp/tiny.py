"""Tiny checkpoints with real headers, in the formats that the linter must tell apart.

A `Tiny` holds tensors, config and the assignment to shards as plain data, so that a test can plant
a defect before it is written.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from runbook.steps.checkpoint.headers import ITEM_BITS, render

BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
NAMES = {
    BF16: "BF16",
    E4M3: "F8_E4M3",
    E8M0: "F8_E8M0",
    np.dtype("f2"): "F16",
    np.dtype("f4"): "F32",
    np.dtype("f8"): "F64",
    np.dtype("i4"): "I32",
    np.dtype("i8"): "I64",
    np.dtype("i1"): "I8",
    np.dtype("u1"): "U8",
}
MTP_SHARD = "model-mtp.safetensors"
P = ParamSpec("P")


@dataclass
class Tiny:
    config: dict[str, Any]
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    """Dtypes to write in the header instead of the array's own."""

    def shard(self, name: str) -> str:
        if name in self.shards:
            return self.shards[name]
        last = f"model.layers.{self.config['num_hidden_layers']}."
        if name.startswith(("mtp.", last)):
            return MTP_SHARD
        parts = name.split(".")
        layer = next((int(p) for p in parts if p.isdigit()), 0)
        return f"model-0000{1 + layer % 2}-of-00002.safetensors"

    def pop(self, *names: str) -> None:
        for name in names:
            del self.tensors[name]

    def rename(self, old: str, new: str) -> None:
        self.tensors[new] = self.tensors.pop(old)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        by_shard: dict[str, list[str]] = {}
        for name in self.tensors:
            by_shard.setdefault(self.shard(name), []).append(name)
        for shard, names in by_shard.items():
            write_shard(folder / shard, {n: self.tensors[n] for n in names}, self.declared)
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in self.tensors.values())},
            "weight_map": {n: self.shard(n) for n in sorted(self.tensors)},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(self.config))
        (folder / "tokenizer.json").write_text("{}")
        return folder


def once(make: Callable[P, Tiny]) -> Callable[P, Tiny]:
    """What a function makes, made once for the same arguments and then copied: a test may spoil
    its own, and the numbers take longer than most of what looks at them."""
    kept = functools.cache(make)

    @functools.wraps(make)
    def another(*args: P.args, **kwargs: P.kwargs) -> Tiny:
        return copy.deepcopy(kept(*args, **kwargs))

    return another


def write_shard(
    path: Path, tensors: dict[str, NDArray[Any]], declared: dict[str, str] | None = None
) -> None:
    entries = []
    for name, array in tensors.items():
        dtype = (declared or {}).get(name) or NAMES[array.dtype]
        entries.append((name, dtype, array.shape, array.nbytes))
    entries.sort(key=lambda e: -ITEM_BITS[e[1]])
    data = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name, *_ in entries)
    path.write_bytes(render(entries, {"format": "pt"}) + data)


class _Maker:
    def __init__(self, tiny: Tiny, seed: int = 0) -> None:
        self.tiny = tiny
        self.random = np.random.default_rng(seed)

    def put(self, name: str, shape: tuple[int, ...], dtype: Any = BF16) -> None:
        self.tiny.tensors[name] = self.random.normal(0, 0.02, shape).astype(dtype)

    def fp8(self, base: str, shape: tuple[int, int], scale: str, dtype: Any) -> None:
        values = self.random.normal(0, 20, shape)
        self.tiny.tensors[f"{base}.weight"] = values.astype(E4M3)
        grid = tuple(-(-n // 128) for n in shape)
        exponents = self.random.integers(-12, -6, grid)
        self.tiny.tensors[f"{base}.{scale}"] = np.exp2(exponents).astype(np.float32).astype(dtype)

    def int4(self, base: str, shape: tuple[int, int]) -> None:
        out, columns = shape
        words = self.random.integers(-(2**31), 2**31, (out, columns // 8))
        self.tiny.tensors[f"{base}.weight_packed"] = words.astype(np.int32)
        self.tiny.tensors[f"{base}.weight_scale"] = np.full((out, columns // 128), 0.01).astype(
            BF16
        )
        self.tiny.tensors[f"{base}.weight_shape"] = np.array(shape, np.int64)

    def fp4(self, base: str, shape: tuple[int, int]) -> None:
        out, columns = shape
        self.tiny.tensors[f"{base}.weight"] = self.random.integers(
            -128, 128, (out, columns // 2)
        ).astype(np.int8)
        exponents = self.random.integers(-12, -6, (out, columns // 32))
        self.tiny.tensors[f"{base}.scale"] = np.exp2(exponents).astype(np.float32).astype(E8M0)


HIDDEN, INTER, LAYERS, EXPERTS, VOCAB, HEADS, HEAD = 256, 128, 4, 4, 64, 2, 64
RATIOS = [0, 4, 128, 4]


@once
def v4(form: str = "seed", mtp: bool = True, compressor: str = "fp8") -> Tiny:
    """A DeepSeek-V4: `seed` is INT4 experts and FP8 attention in compressed-tensors, `native`
    FP4 experts and FP8 linears as upstream stores them. `compressor` is fp8 or bf16."""
    config: dict[str, Any] = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "head_dim": HEAD,
        "q_lora_rank": 128,
        "o_groups": 2,
        "o_lora_rank": 64,
        "num_experts_per_tok": 2,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "compress_ratios": [*RATIOS, 0],
        "num_hash_layers": 1,
        "hc_mult": 4,
        "swiglu_limit": 10.0,
        "index_n_heads": 2,
        "index_head_dim": 64,
        "num_nextn_predict_layers": 1 if mtp else 0,
        "torch_dtype": "bfloat16",
    }
    tiny = Tiny(config)
    maker = _Maker(tiny)
    for name in ("embed.weight", "head.weight"):
        maker.put(name, (VOCAB, HIDDEN))
    maker.put("norm.weight", (HIDDEN,))
    _hc_head(maker, "")
    for i in range(LAYERS):
        _v4_layer(maker, f"layers.{i}.", RATIOS[i], i == 0, form, compressor)
    if mtp:
        _v4_layer(maker, "mtp.0.", 0, False, form, compressor)
        _hc_head(maker, "mtp.0.")
        for name in ("enorm", "hnorm", "norm"):
            maker.put(f"mtp.0.{name}.weight", (HIDDEN,))
        for name in ("e_proj", "h_proj"):
            if form == "native":
                maker.fp8(f"mtp.0.{name}", (HIDDEN, HIDDEN), "scale", E8M0)
            else:
                maker.put(f"mtp.0.{name}.weight", (HIDDEN, HIDDEN))
    if form == "native":
        config["expert_dtype"] = "fp4"
        config["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        }
    else:
        config["expert_dtype"] = "bf16"
        attention = [
            r"re:.*attn\.(wq_a|wq_b|wkv|wo_a|wo_b|fused_wqa_wkv)$",
            r"re:.*attn\.indexer\.wq_b$",
        ]
        if compressor == "fp8":
            attention.append(r"re:.*compressor\.(wgate|wkv|fused_wkv_wgate)$")
        config["quantization_config"] = compressed_tensors(
            attention,
            [r"re:.*experts\.\d+\.(w1|w2|w3|gate_proj|up_proj|down_proj|gate_up_proj)$"],
            ["lm_head", "re:.*shared_experts.*", r"re:.*\.(e_proj|h_proj)$"],
        )
    return tiny


def compressed_tensors(fp8: list[str], int4: list[str], ignore: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "scale_fmt": "ue8m0",
        "ignore": ignore,
        "config_groups": {
            "group_0": {
                "targets": fp8,
                "format": "float-quantized",
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "block",
                    "block_structure": [128, 128],
                    "symmetric": True,
                },
                "input_activations": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "group",
                    "group_size": 128,
                    "dynamic": True,
                },
            },
            "group_1": {
                "targets": int4,
                "format": "pack-quantized",
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "strategy": "group",
                    "group_size": 128,
                    "symmetric": True,
                    "actorder": None,
                },
            },
        },
    }


def _hc_head(maker: _Maker, prefix: str) -> None:
    maker.put(f"{prefix}hc_head_fn", (4, 4 * HIDDEN), "f4")
    maker.put(f"{prefix}hc_head_base", (4,), "f4")
    maker.put(f"{prefix}hc_head_scale", (1,), "f4")


def _v4_layer(maker: _Maker, p: str, ratio: int, hashed: bool, form: str, compressor: str) -> None:
    native = form == "native"
    scale, scale_dtype = ("scale", E8M0) if native else ("weight_scale", np.dtype("f4"))
    for norm in ("attn_norm", "ffn_norm"):
        maker.put(f"{p}{norm}.weight", (HIDDEN,))
    for part in ("attn", "ffn"):
        maker.put(f"{p}hc_{part}_fn", (24, 4 * HIDDEN), "f4")
        maker.put(f"{p}hc_{part}_base", (24,), "f4")
        maker.put(f"{p}hc_{part}_scale", (3,), "f4")
    shapes = {
        "wq_a": (128, HIDDEN),
        "wq_b": (HEADS * HEAD, 128),
        "wkv": (HEAD, HIDDEN),
        "wo_a": (128, HEADS * HEAD // 2),
        "wo_b": (HIDDEN, 128),
    }
    for name, shape in shapes.items():
        maker.fp8(f"{p}attn.{name}", shape, scale, scale_dtype)
    maker.put(f"{p}attn.q_norm.weight", (128,))
    maker.put(f"{p}attn.kv_norm.weight", (HEAD,))
    maker.put(f"{p}attn.attn_sink", (HEADS,), "f4")
    parts = [(f"{p}attn.compressor", HEAD)] if ratio > 1 else []
    if ratio == 4:
        parts.append((f"{p}attn.indexer.compressor", 64))
        maker.fp8(f"{p}attn.indexer.wq_b", (128, 128), scale, scale_dtype)
        maker.put(f"{p}attn.indexer.weights_proj.weight", (2, HIDDEN))
    for base, head in parts:
        width = head * (2 if ratio == 4 else 1)
        maker.put(f"{base}.ape", (ratio, width), "f4")
        maker.put(f"{base}.norm.weight", (head,))
        for name in ("wkv", "wgate"):
            if compressor == "fp8":
                maker.fp8(f"{base}.{name}", (width, HIDDEN), scale, scale_dtype)
            else:
                maker.put(f"{base}.{name}.weight", (width, HIDDEN))
    maker.put(f"{p}ffn.gate.weight", (EXPERTS, HIDDEN))
    if hashed:
        maker.tiny.tensors[f"{p}ffn.gate.tid2eid"] = np.zeros((VOCAB, 2), np.int64)
    else:
        maker.put(f"{p}ffn.gate.bias", (EXPERTS,), "f4")
    swiglu = {"w1": (INTER, HIDDEN), "w3": (INTER, HIDDEN), "w2": (HIDDEN, INTER)}
    for name, shape in swiglu.items():
        for e in range(EXPERTS):
            base = f"{p}ffn.experts.{e}.{name}"
            maker.fp4(base, shape) if native else maker.int4(base, shape)
        base = f"{p}ffn.shared_experts.{name}"
        if native:
            maker.fp8(base, shape, scale, scale_dtype)
        else:
            maker.put(f"{base}.weight", shape)


@once
def v3(form: str = "seed", mtp: bool = True) -> Tiny:
    """A DeepSeek-V3 by its Hugging Face names, the MTP block as layer 3."""
    layers, nope, rope, value, kv = 3, 64, 32, 64, 128
    config: dict[str, Any] = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "moe_intermediate_size": INTER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "q_lora_rank": 128,
        "kv_lora_rank": kv,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 1 if mtp else 0,
        "tie_word_embeddings": False,
    }
    tiny = Tiny(config)
    maker = _Maker(tiny)
    maker.put("model.embed_tokens.weight", (VOCAB, HIDDEN))
    maker.put("lm_head.weight", (VOCAB, HIDDEN))
    maker.put("model.norm.weight", (HIDDEN,))
    attention = {
        "q_a_proj": (128, HIDDEN),
        "q_b_proj": (HEADS * (nope + rope), 128),
        "kv_a_proj_with_mqa": (kv + rope, HIDDEN),
        "kv_b_proj": (HEADS * (nope + value), kv),
        "o_proj": (HIDDEN, HEADS * value),
    }
    for i in range(layers + (1 if mtp else 0)):
        p = f"model.layers.{i}"
        for name, shape in attention.items():
            if form == "seed" and name in ("q_b_proj", "kv_b_proj", "o_proj"):
                maker.fp8(f"{p}.self_attn.{name}", shape, "weight_scale", np.dtype("f4"))
            else:
                maker.put(f"{p}.self_attn.{name}.weight", shape)
        maker.put(f"{p}.self_attn.q_a_layernorm.weight", (128,))
        maker.put(f"{p}.self_attn.kv_a_layernorm.weight", (kv,))
        maker.put(f"{p}.input_layernorm.weight", (HIDDEN,))
        maker.put(f"{p}.post_attention_layernorm.weight", (HIDDEN,))
        width = 256 if i == 0 else INTER
        shapes = {"gate_proj": (width, HIDDEN), "up_proj": (width, HIDDEN)}
        shapes["down_proj"] = (HIDDEN, width)
        if i == 0:
            for name, shape in shapes.items():
                maker.put(f"{p}.mlp.{name}.weight", shape)
            continue
        maker.put(f"{p}.mlp.gate.weight", (EXPERTS, HIDDEN))
        maker.put(f"{p}.mlp.gate.e_score_correction_bias", (EXPERTS,), "f4")
        for name, shape in shapes.items():
            maker.put(f"{p}.mlp.shared_experts.{name}.weight", shape)
            for e in range(EXPERTS):
                base = f"{p}.mlp.experts.{e}.{name}"
                maker.int4(base, shape) if form == "seed" else maker.put(f"{base}.weight", shape)
    if mtp:
        p = f"model.layers.{layers}"
        for name in ("enorm", "hnorm", "shared_head.norm"):
            maker.put(f"{p}.{name}.weight", (HIDDEN,))
        maker.put(f"{p}.eh_proj.weight", (HIDDEN, 2 * HIDDEN))
        maker.put(f"{p}.embed_tokens.weight", (VOCAB, HIDDEN))
        maker.put(f"{p}.shared_head.head.weight", (VOCAB, HIDDEN))
    if form == "seed":
        config["quantization_config"] = compressed_tensors(
            [r"re:.*self_attn\.(q_b_proj|kv_b_proj|o_proj)$"],
            [r"re:.*mlp\.experts\.\d+\.(gate_proj|up_proj|down_proj)$"],
            ["lm_head"],
        )
    return tiny
