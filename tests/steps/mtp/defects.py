"""Every defect that the linter must tell, planted into a tiny checkpoint.

Each takes the checkpoint before it is written (`plant`) or the folder afterwards (`damage`), and
names the finding it must cause for a target.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runbook.steps.checkpoint.targets import Target
from tests.steps.mtp import tiny
from tests.steps.mtp.tiny import BF16, Tiny

V33, V22, CPU, FORK = (Target(name) for name in ("0.33.0", "0.22.1", "0.32.0-cpu", "abad5dc71"))


def clean() -> Tiny:
    return tiny.v4(compressor="bf16")


@dataclass(frozen=True)
class Defect:
    finding: str
    make: Callable[[], Tiny] = clean
    plant: Callable[[Tiny], object] = lambda t: None
    damage: Callable[[Path], object] = lambda f: None
    target: Target = V33
    severity: str = "error"
    mended: bool = False


def quant(t: Tiny) -> dict:
    return t.config["quantization_config"]


def group(t: Tiny, number: int) -> dict:
    return quant(t)["config_groups"][f"group_{number}"]


def cast(t: Tiny, name: str, dtype: object) -> None:
    t.tensors[name] = t.tensors[name].astype(dtype)


def edit_index(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "model.safetensors.index.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def unlist_mtp(document: dict) -> None:
    for name in [n for n in document["weight_map"] if n.startswith("mtp.")]:
        del document["weight_map"][name]


def truncate(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 7)


def bad_header(folder: Path) -> None:
    with (folder / "model-00002-of-00002.safetensors").open("r+b") as file:
        file.seek(9)
        file.write(b"\0")


def hole(folder: Path) -> None:
    """Shift one tensor's offsets so that the header no longer covers the data."""
    path = folder / tiny.MTP_SHARD
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["mtp.0.enorm.weight"]["data_offsets"][1] -= 2
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(raw[:8] + text + b" " * (length - len(text)) + raw[8 + length :])


def duplicate(folder: Path) -> None:
    """A second embed.weight in a listed shard."""
    shard = folder / tiny.MTP_SHARD
    made = clean()
    names = [n for n in made.tensors if n.startswith("mtp.")]
    tiny.write_shard(shard, {n: made.tensors[n] for n in [*names, "embed.weight"]})


A, E = "mtp.0.attn.", "mtp.0.ffn.experts.1.w2."

DEFECTS: dict[str, Defect] = {
    "no mtp block": Defect("mtp_stripped", lambda: tiny.v4(mtp=False, compressor="bf16")),
    "no mtp block, v3": Defect("mtp_stripped", lambda: tiny.v3(mtp=False)),
    "no mtp block, but declared": Defect(
        "mtp_stripped",
        lambda: tiny.v4(mtp=False, compressor="bf16"),
        lambda t: t.config.update(num_nextn_predict_layers=1),
    ),
    "mtp lacks enorm": Defect("mtp_incomplete", plant=lambda t: t.pop("mtp.0.enorm.weight")),
    "mtp lacks one expert": Defect(
        "mtp_incomplete",
        plant=lambda t: t.pop(E + "weight_packed", E + "weight_scale", E + "weight_shape"),
    ),
    "mtp lacks eh_proj, v3": Defect(
        "mtp_incomplete", tiny.v3, lambda t: t.pop("model.layers.3.eh_proj.weight")
    ),
    "mtp not declared": Defect(
        "mtp_undeclared",
        plant=lambda t: t.config.update(num_nextn_predict_layers=0),
        mended=True,
    ),
    "two mtp blocks declared, one there": Defect(
        "mtp_overdeclared",
        plant=lambda t: t.config.update(num_nextn_predict_layers=2),
        mended=True,
    ),
    "mtp shard not in the index": Defect(
        "index_lacks", damage=lambda f: edit_index(f, unlist_mtp), mended=True
    ),
    "a layer lacks a norm": Defect(
        "tensor_missing", plant=lambda t: t.pop("layers.2.attn_norm.weight")
    ),
    "the final norm is missing": Defect("tensor_missing", plant=lambda t: t.pop("norm.weight")),
    "no layer has q_norm": Defect(
        "tensor_kind_missing",
        plant=lambda t: t.pop(*[f"layers.{i}.attn.q_norm.weight" for i in range(4)]),
        severity="warning",
    ),
    "unknown tensor": Defect(
        "tensor_unknown",
        plant=lambda t: t.rename("layers.1.attn_norm.weight", "layers.1.attn_norm.gain"),
        severity="warning",
    ),
    "transformers names": Defect(
        "name_drift",
        plant=lambda t: t.rename("layers.1.hc_attn_base", "layers.1.attn_hc.base"),
        mended=True,
    ),
    "hc_head by its transformers name": Defect(
        "name_drift", plant=lambda t: t.rename("hc_head_base", "hc_head.hc_base"), mended=True
    ),
    "gate bias by its transformers name": Defect(
        "gate_bias_name",
        plant=lambda t: t.rename(
            "layers.1.ffn.gate.bias", "layers.1.ffn.gate.e_score_correction_bias"
        ),
        target=V22,
        mended=True,
    ),
    "gate bias, newer build": Defect(
        "gate_bias_name",
        plant=lambda t: t.rename(
            "layers.1.ffn.gate.bias", "layers.1.ffn.gate.e_score_correction_bias"
        ),
        severity="info",
    ),
    "hyper-connections in bf16": Defect(
        "fp32_downcast", plant=lambda t: cast(t, "mtp.0.hc_attn_fn", BF16), severity="warning"
    ),
    "norm of another shape": Defect(
        "tensor_shape",
        plant=lambda t: t.tensors.update({"norm.weight": np.zeros(255, BF16)}),
    ),
    "fp8 weight of another shape": Defect(
        "tensor_shape",
        plant=lambda t: t.tensors.update({A + "wq_a.weight": t.tensors[A + "wq_a.weight"][:64]}),
    ),
    "scale missing": Defect("scale_missing", plant=lambda t: t.pop(A + "wo_b.weight_scale")),
    "scale of an unquantised weight": Defect(
        "scale_orphan",
        plant=lambda t: t.tensors.update({"mtp.0.e_proj.weight_scale": np.ones((2, 2), "f4")}),
        severity="warning",
    ),
    "upstream scale name": Defect(
        "scale_name",
        plant=lambda t: t.rename(A + "wq_b.weight_scale", A + "wq_b.scale"),
        mended=True,
    ),
    "scale_inv": Defect(
        "scale_name",
        plant=lambda t: t.rename(
            "layers.1.attn.wkv.weight_scale", "layers.1.attn.wkv.weight_scale_inv"
        ),
        mended=True,
    ),
    "scale_inv, v3": Defect(
        "scale_name",
        tiny.v3,
        lambda t: t.rename(
            "model.layers.1.self_attn.o_proj.weight_scale",
            "model.layers.1.self_attn.o_proj.weight_scale_inv",
        ),
        mended=True,
    ),
    "E8M0 as U8": Defect(
        "scale_u8",
        plant=lambda t: t.tensors.update({A + "wkv.weight_scale": np.full((1, 2), 118, "u1")}),
        mended=True,
    ),
    "scale as integers": Defect(
        "scale_dtype", plant=lambda t: cast(t, A + "wkv.weight_scale", "i4")
    ),
    "scale of another shape": Defect(
        "scale_shape",
        plant=lambda t: t.tensors.update({A + "wkv.weight_scale": np.full((2, 2), 0.01, "f4")}),
    ),
    "scale values of exponent bytes": Defect(
        "scale_range",
        plant=lambda t: t.tensors.update({A + "wkv.weight_scale": np.full((1, 2), 118, "f4")}),
    ),
    "scale not a number": Defect(
        "scale_range",
        plant=lambda t: t.tensors.update({A + "wkv.weight_scale": np.full((1, 2), np.nan, BF16)}),
    ),
    "packed as I64": Defect("packed_dtype", plant=lambda t: cast(t, E + "weight_packed", "i8")),
    "packed transposed": Defect(
        "packed_shape",
        plant=lambda t: t.tensors.update({E + "weight_packed": t.tensors[E + "weight_packed"].T}),
    ),
    "group size 64 in the file": Defect(
        "packed_shape",
        plant=lambda t: t.tensors.update({E + "weight_scale": np.full((256, 2), 0.1, BF16)}),
    ),
    "weight_shape swapped": Defect(
        "weight_shape",
        plant=lambda t: t.tensors.update({E + "weight_shape": np.array([128, 256], "i8")}),
    ),
    "weight_shape missing": Defect("weight_shape", plant=lambda t: t.pop(E + "weight_shape")),
    "quantised, config silent": Defect(
        "quantization_absent", plant=lambda t: t.config.pop("quantization_config")
    ),
    "attention matches no target": Defect(
        "quant_unmatched",
        plant=lambda t: group(t, 0).update(targets=[r"re:.*attn\.(wq_a|wkv|wo_a|wo_b)$"]),
    ),
    "e_proj matched and not ignored": Defect(
        "quant_overmatched",
        plant=lambda t: (
            quant(t).update(ignore=["lm_head", "re:.*shared_experts.*"]),
            group(t, 0)["targets"].append(r"re:.*\.(e_proj|h_proj)$"),
        ),
        mended=True,
    ),
    "shared experts not ignored": Defect(
        "quant_overmatched",
        plant=lambda t: (
            quant(t).update(ignore=None),
            group(t, 0)["targets"].append(r"re:.*shared_experts\.(w1|w2|w3|down_proj)$"),
        ),
        mended=True,
    ),
    "experts under the fp8 group": Defect(
        "quant_scheme",
        plant=lambda t: group(t, 0)["targets"].append(r"re:.*experts\.\d+\..*"),
    ),
    "wq_a in bf16 beside wkv in fp8": Defect(
        "quant_torn",
        plant=lambda t: (cast(t, A + "wq_a.weight", BF16), t.pop(A + "wq_a.weight_scale")),
    ),
    "experts without the probe name": Defect(
        "expert_probe",
        plant=lambda t: group(t, 1).update(targets=[r"re:.*experts\.\d+\.(w1|w2|w3)$"]),
        mended=True,
    ),
    "fused name not a target": Defect(
        "fused_targets",
        plant=lambda t: group(t, 0).update(
            targets=[r"re:.*attn\.(wq_a|wq_b|wkv|wo_a|wo_b)$", r"re:.*attn\.indexer\.wq_b$"]
        ),
        target=V22,
        mended=True,
    ),
    "actorder static, old build": Defect(
        "actorder_static",
        plant=lambda t: group(t, 1)["weights"].update(actorder="static"),
        target=FORK,
        mended=True,
    ),
    "actorder static, newer build": Defect(
        "actorder_static",
        plant=lambda t: group(t, 1)["weights"].update(actorder="static"),
        severity="warning",
        mended=True,
    ),
    "actorder group": Defect(
        "actorder_group", plant=lambda t: group(t, 1)["weights"].update(actorder="group")
    ),
    "no scale_fmt": Defect(
        "scale_fmt", plant=lambda t: quant(t).pop("scale_fmt"), target=V22, mended=True
    ),
    "compressor in fp8": Defect("compressor_quantised", tiny.v4, mended=True),
    "weights_proj in fp8": Defect(
        "indexer_weights_quantised",
        plant=lambda t: (
            cast(t, "layers.1.attn.indexer.weights_proj.weight", tiny.E4M3),
            t.tensors.update(
                {"layers.1.attn.indexer.weights_proj.weight_scale": np.full((1, 2), 0.5, "f4")}
            ),
            group(t, 0)["targets"].append(r"re:.*layers\.1\..*weights_proj$"),
        ),
        mended=True,
    ),
    "expert_dtype fp4": Defect(
        "expert_dtype", plant=lambda t: t.config.update(expert_dtype="fp4"), mended=True
    ),
    "no clamp on this build": Defect("swiglu_clamp", target=CPU, severity="warning"),
    "no compress_ratios": Defect(
        "config_field", plant=lambda t: t.config.update(compress_ratios=None)
    ),
    "foreign architecture": Defect(
        "architecture_unknown",
        plant=lambda t: t.config.update(architectures=["LlamaForCausalLM"], model_type="llama"),
    ),
    "truncated shard": Defect("shard_length", damage=truncate),
    "bad header": Defect("header_invalid", damage=bad_header),
    "hole in the data": Defect("shard_layout", damage=hole),
    "shard not there": Defect(
        "shard_missing", damage=lambda f: (f / "model-00002-of-00002.safetensors").unlink()
    ),
    "index names what is not there": Defect(
        "index_stale",
        damage=lambda f: edit_index(
            f,
            lambda d: d["weight_map"].update(
                {"mtp.0.enorm.weight": "model-00001-of-00002.safetensors"}
            ),
        ),
    ),
    "two of one name": Defect("tensor_duplicate", damage=duplicate, mended=True),
    "no index": Defect(
        "index_missing",
        damage=lambda f: (f / "model.safetensors.index.json").unlink(),
        severity="warning",
    ),
    "wrong total size": Defect(
        "index_size",
        damage=lambda f: edit_index(f, lambda d: d["metadata"].update(total_size=1)),
        severity="info",
    ),
    "no aliases": Defect("mtp_aliases", severity="info"),
}
