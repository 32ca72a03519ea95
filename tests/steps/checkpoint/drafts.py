"""Tiny DeepSeek-V4 with a DSpark draft, and experts in NVFP4 as two tools spell it."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from runbook.steps.checkpoint.lint.subject import PACKED
from tests.steps.mtp import tiny
from tests.steps.mtp.tiny import EXPERTS, HIDDEN, LAYERS, RATIOS, VOCAB, Tiny

STAGES, RANK = 3, 16
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
MODELOPT = ("weight", "weight_scale", "weight_scale_2", "input_scale")
GROUPED = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
"""Names of packed values, scales, second scale and scale of the inputs, by ModelOpt and by
compressed-tensors."""


@tiny.once
def dspark() -> Tiny:
    """As the vendor stores it: MXFP4 experts, FP8 linears, three stages."""
    made = tiny.v4("native", mtp=False, compressor="bf16")
    made.config.update(
        num_nextn_predict_layers=1,
        compress_ratios=[*RATIOS, *[0] * STAGES],
        dspark_block_size=5,
        dspark_noise_token_id=VOCAB - 1,
        dspark_target_layer_ids=list(range(LAYERS - STAGES, LAYERS)),
        dspark_markov_rank=RANK,
    )
    maker = tiny._Maker(made)
    for stage in range(STAGES):
        tiny._v4_layer(maker, f"mtp.{stage}.", 0, False, "native", "bf16")
    maker.fp8("mtp.0.main_proj", (HIDDEN, STAGES * HIDDEN), "scale", tiny.E8M0)
    maker.put("mtp.0.main_norm.weight", (HIDDEN,))
    last = f"mtp.{STAGES - 1}"
    maker.put(f"{last}.norm.weight", (HIDDEN,))
    tiny._hc_head(maker, f"{last}.")
    for name in ("markov_w1", "markov_w2"):
        maker.put(f"{last}.markov_head.{name}.weight", (VOCAB, RANK))
    maker.put(f"{last}.confidence_head.proj.weight", (1, HIDDEN + RANK), "f4")
    return made


def nvfp4(made: Tiny, layers: list[str], names: tuple[str, str, str, str] = MODELOPT) -> None:
    """Store the experts below these prefixes as NVFP4."""
    for layer in layers:
        for expert in range(EXPERTS):
            for leaf in ("w1", "w2", "w3"):
                base = f"{layer}ffn.experts.{expert}.{leaf}"
                out, half = made.tensors[f"{base}.weight"].shape
                made.pop(f"{base}.weight", f"{base}.scale")
                packed, scale, second, inputs = (f"{base}.{name}" for name in names)
                made.tensors[packed] = np.full((out, half), 0x21, np.uint8)
                made.tensors[scale] = np.full((out, half // 8), 0.5).astype(E4M3)
                shape = () if names is MODELOPT else (1,)
                made.tensors[second] = np.full(shape, 0.01, "f4")
                made.tensors[inputs] = np.full(shape, 0.02, "f4")


@tiny.once
def target_nvfp4(draft: bool = False) -> Tiny:
    """As ModelOpt makes it: the target's experts in NVFP4, those of the draft still in MXFP4, or
    cast as well."""
    made = dspark()
    layers = [f"layers.{i}." for i in range(LAYERS)]
    if draft:
        layers += [f"mtp.{stage}." for stage in range(STAGES)]
    nvfp4(made, layers)
    made.config["quantization_config"].update(
        moe_quant_algo="NVFP4",
        ignore=[] if draft else ["mtp.*"],
        quantized_layers={
            f"{layer}ffn.experts": {"quant_algo": "NVFP4", "group_size": 16} for layer in layers
        },
    )
    return made


@tiny.once
def grouped_nvfp4() -> Tiny:
    """An MTP block beside a target whose experts are NVFP4 by compressed-tensors."""
    made = tiny.v4(compressor="bf16")
    layers = [*(f"layers.{i}." for i in range(LAYERS)), "mtp.0."]
    for layer in layers:
        for expert in range(EXPERTS):
            for leaf, shape in (("w1", (128, 256)), ("w2", (256, 128)), ("w3", (128, 256))):
                base = f"{layer}ffn.experts.{expert}.{leaf}"
                made.pop(*(base + suffix for suffix in PACKED))
                made.tensors[f"{base}.weight"] = np.zeros((shape[0], shape[1] // 2), np.uint8)
                made.tensors[f"{base}.scale"] = np.zeros(1, "f4")
    nvfp4(made, layers, GROUPED)
    group = made.config["quantization_config"]["config_groups"]["group_1"]
    group["format"] = "nvfp4-pack-quantized"
    group["weights"] = {"num_bits": 4, "type": "float", "group_size": 16}
    return made
