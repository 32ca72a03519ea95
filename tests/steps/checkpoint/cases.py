"""Faults that concern formats and drafts, each planted into a tiny checkpoint that is sound
without it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from runbook.steps.checkpoint.targets import Target
from tests.steps.checkpoint.drafts import RANK, dspark, grouped_nvfp4, target_nvfp4
from tests.steps.checkpoint.file_cases import FILES, config
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import CPU, V22, Defect, group, quant
from tests.steps.mtp.tiny import HIDDEN, VOCAB, Tiny

PATCHED = Target("0.33.0", "0.33.0")
E = "layers.1.ffn.experts.0.w1"
D = "mtp.1.ffn.experts.3.w2"
LAST = "mtp.2."


def stored(name: str, value: np.ndarray):
    return lambda t: t.tensors.update({name: value})


def dropped(prefix: str):
    return lambda t: t.pop(*[n for n in t.tensors if n.startswith(prefix)])


def unquantised(prefix: str):
    """Stores the experts below a prefix in 16 bits, whatever they were."""

    def plant(t: Tiny) -> None:
        for base in sorted({n.rpartition(".")[0] for n in t.tensors if n.startswith(prefix)}):
            dropped(f"{base}.")(t)
            shape = (HIDDEN, tiny.INTER) if base.endswith("w2") else (tiny.INTER, HIDDEN)
            t.tensors[f"{base}.weight"] = np.zeros(shape, tiny.BF16)

    return plant


def fp8(base: str, rows: int, columns: int):
    """Stores a weight in FP8, whatever it was."""

    def plant(t: Tiny) -> None:
        dropped(f"{base}.")(t)
        t.tensors[f"{base}.weight"] = np.zeros((rows, columns), tiny.E4M3)
        scales = (-(-rows // 128), -(-columns // 128))
        t.tensors[f"{base}.weight_scale"] = np.full(scales, 0.01, "f4")

    return plant


DSPARK: dict[str, Defect] = {
    "a draft of DSpark": Defect("dspark_draft", dspark, severity="info"),
    "a build without DSpark": Defect("dspark_unserved", dspark, target=V22, severity="warning"),
    "on the CPU": Defect("dspark_unserved", dspark, target=CPU, severity="warning"),
    "no stage": Defect("mtp_stripped", dspark, dropped("mtp.")),
    "the last stage missing": Defect("dspark_stages", dspark, dropped(LAST)),
    "what the last stage lacks": Defect("dspark_incomplete", dspark, dropped(LAST)),
    "a stage in the middle missing": Defect("dspark_stages", dspark, dropped("mtp.1.")),
    "a stage more than is built": Defect(
        "dspark_stages", dspark, stored("mtp.3.attn_norm.weight", np.ones(HIDDEN, tiny.BF16))
    ),
    "two stages declared": Defect("dspark_stages", dspark, config(n_mtp_layers=2)),
    "a shared expert missing": Defect(
        "dspark_incomplete", dspark, dropped("mtp.1.ffn.shared_experts.w2")
    ),
    "an expert missing": Defect("dspark_incomplete", dspark, dropped(D)),
    "main_proj missing": Defect("dspark_incomplete", dspark, dropped("mtp.0.main_proj")),
    "no scale of main_proj": Defect(
        "scale_missing", dspark, lambda t: t.pop("mtp.0.main_proj.scale")
    ),
    "layer ids counted from 1": Defect(
        "dspark_layer_ids", dspark, config(dspark_target_layer_ids=[2, 3, 4])
    ),
    "a layer id twice": Defect(
        "dspark_layer_ids", dspark, config(dspark_target_layer_ids=[2, 2, 3])
    ),
    "other layers": Defect(
        "dspark_layers_other",
        dspark,
        config(dspark_target_layer_ids=[0, 1, 2]),
        severity="warning",
    ),
    "two layer ids, main_proj for three": Defect(
        "tensor_shape", dspark, config(dspark_target_layer_ids=[2, 3])
    ),
    "layer ids as texts": Defect(
        "config_field", dspark, config(dspark_target_layer_ids=["1", "2", "3"])
    ),
    "no layer ids": Defect("config_field", dspark, lambda t: t.config.pop("dspark_markov_rank")),
    "a noise token beyond the vocabulary": Defect(
        "dspark_noise_id", dspark, config(dspark_noise_token_id=VOCAB)
    ),
    "a negative noise token": Defect("dspark_noise_id", dspark, config(dspark_noise_token_id=-1)),
    "no noise token": Defect(
        "dspark_noise_id", dspark, lambda t: t.config.pop("dspark_noise_token_id")
    ),
    "no block size": Defect("dspark_field", dspark, lambda t: t.config.pop("dspark_block_size")),
    "no compress_ratios of the stages": Defect(
        "dspark_field", dspark, lambda t: t.config.update(compress_ratios=[*tiny.RATIOS, 0])
    ),
    "a compressed stage": Defect(
        "dspark_field",
        dspark,
        lambda t: t.config.update(compress_ratios=[*tiny.RATIOS, 0, 0, 128]),
    ),
    "a Markov table of another rank": Defect(
        "tensor_shape",
        dspark,
        stored(f"{LAST}markov_head.markov_w1.weight", np.zeros((VOCAB, RANK // 2), tiny.BF16)),
    ),
    "a Markov table turned": Defect(
        "tensor_shape",
        dspark,
        stored(f"{LAST}markov_head.markov_w2.weight", np.zeros((RANK, VOCAB), tiny.BF16)),
    ),
    "a Markov table of integers": Defect(
        "tensor_dtype",
        dspark,
        stored(f"{LAST}markov_head.markov_w1.weight", np.zeros((VOCAB, RANK), "i4")),
    ),
    "the heads on the first stage": Defect(
        "dspark_incomplete",
        dspark,
        lambda t: t.rename(f"{LAST}norm.weight", "mtp.0.norm.weight"),
    ),
    "no confidence head": Defect(
        "dspark_confidence", dspark, dropped(f"{LAST}confidence_head"), severity="info"
    ),
    "projections of an MTP block": Defect(
        "tensor_unknown",
        dspark,
        stored("mtp.0.e_proj.weight", np.zeros((HIDDEN, HIDDEN), tiny.BF16)),
        severity="warning",
    ),
    "a draft in its own format, one format for all": Defect("draft_format", target_nvfp4),
}
FORMATS: dict[str, Defect] = {
    "a method of another tool": Defect(
        "quant_method", plant=lambda t: quant(t).update(quant_method="awq")
    ),
    "INT4 said to be the vendor's FP8": Defect(
        "quant_method", plant=lambda t: quant(t).update(quant_method="fp8")
    ),
    "NVFP4 said to be the vendor's": Defect(
        "quant_method",
        target_nvfp4,
        lambda t: [quant(t).pop(k) for k in ("moe_quant_algo", "quantized_layers")],
    ),
    "an NVFP4 layer not named": Defect(
        "quant_unmatched",
        target_nvfp4,
        lambda t: quant(t)["quantized_layers"].pop("layers.2.ffn.experts"),
    ),
    "an NVFP4 layer ignored": Defect(
        "quant_unmatched", target_nvfp4, lambda t: quant(t)["ignore"].append("layers.2.ffn*")
    ),
    "an MXFP4 layer named as NVFP4": Defect(
        "quant_scheme",
        target_nvfp4,
        lambda t: quant(t).update(
            ignore=[],
            quantized_layers={
                **quant(t)["quantized_layers"],
                "mtp.1.ffn.experts": {"quant_algo": "NVFP4"},
            },
        ),
    ),
    "a second scale missing": Defect(
        "scale_missing", target_nvfp4, lambda t: t.pop(f"{E}.weight_scale_2")
    ),
    "a second scale for each row": Defect(
        "scale_shape", target_nvfp4, stored(f"{E}.weight_scale_2", np.ones(128, "f4"))
    ),
    "a second scale in 16 bits": Defect(
        "scale_dtype", target_nvfp4, stored(f"{E}.weight_scale_2", np.ones((), tiny.BF16))
    ),
    "groups of 32 in NVFP4": Defect(
        "scale_shape",
        target_nvfp4,
        stored(f"{E}.weight_scale", np.ones((128, 8)).astype(tiny.E4M3)),
    ),
    "some inputs without scale": Defect(
        "scale_missing", target_nvfp4, lambda t: t.pop(f"{E}.input_scale")
    ),
    "groups of 16 in MXFP4": Defect(
        "scale_shape", dspark, stored(f"{E}.scale", np.ones((128, 16)).astype(tiny.E8M0))
    ),
    "MXFP4 not packed": Defect(
        "tensor_shape", dspark, stored(f"{E}.weight", np.ones((128, 256), "i1"))
    ),
    "experts of FP8, said to be FP4": Defect("expert_format", dspark, config(expert_dtype="fp8")),
    "one layer's experts in two formats": Defect(
        "quant_torn",
        dspark,
        lambda t: t.tensors.update(
            {
                f"{E}.weight": np.ones((128, 256)).astype(tiny.E4M3),
                f"{E}.scale": np.full((1, 2), 0.01).astype(tiny.E8M0),
            }
        ),
    ),
    "a draft in FP4, experts said to be FP8": Defect(
        "expert_format", target_nvfp4, config(expert_dtype="fp8")
    ),
    "INT4 and an algorithm of ModelOpt": Defect(
        "quant_method",
        plant=lambda t: quant(t).update(quant_method="fp8", moe_quant_algo="NVFP4"),
    ),
    "one layer's experts in INT4 and FP8": Defect("quant_torn", plant=fp8(E, 128, 256)),
    "experts ignored": Defect(
        "quant_unmatched", plant=lambda t: quant(t)["ignore"].append("re:.*ffn.experts.*")
    ),
    "experts that are not quantised": Defect(
        "quant_overmatched", plant=unquantised("layers.2.ffn.experts."), mended=True
    ),
    "attention in a group of whole numbers": Defect(
        "quant_scheme", plant=lambda t: group(t, 0)["weights"].update(type="int")
    ),
    "MXFP4 without scale": Defect("scale_missing", dspark, lambda t: t.pop(f"{E}.scale")),
    "a scale missing, and one of inputs": Defect(
        "scale_missing",
        target_nvfp4,
        lambda t: t.pop(f"{E}.weight_scale", "layers.2.ffn.experts.0.w1.input_scale"),
    ),
    "NVFP4 by groups, of INT4": Defect(
        "quant_scheme",
        grouped_nvfp4,
        lambda t: group(t, 1)["weights"].update(type="int"),
    ),
    "NVFP4 by groups, no global scale": Defect(
        "scale_missing", grouped_nvfp4, lambda t: t.pop(f"{E}.weight_global_scale")
    ),
    "a target that is no expression": Defect(
        "target_invalid", plant=lambda t: quant(t)["ignore"].append("re:(")
    ),
    "a target with look-around": Defect(
        "target_unexamined",
        plant=lambda t: quant(t)["ignore"].append("re:(?<!x)lm_head"),
        severity="warning",
    ),
    "a float where integers are": Defect(
        "tensor_dtype",
        plant=stored("layers.0.ffn.gate.tid2eid", np.zeros((VOCAB, 2), "f4")),
    ),
    "another shape than the config says": Defect(
        "tensor_shape",
        plant=stored("mtp.0.e_proj.weight", np.zeros((HIDDEN, HIDDEN // 2), tiny.BF16)),
    ),
    "another shape, beside a missing tensor": Defect(
        "tensor_shape",
        plant=lambda t: (t.pop("embed.weight"), stored("norm.weight", np.zeros(1, "f4"))(t)),
    ),
    "a layer lacks an expert": Defect(
        "tensor_missing", plant=dropped("layers.2.ffn.experts.3.w2.")
    ),
    "no expert has w3": Defect(
        "tensor_kind_missing",
        plant=lambda t: t.pop(*[n for n in t.tensors if n[0] == "l" and ".w3.weight_" in n]),
        severity="warning",
    ),
    "a weight of integers": Defect(
        "weight_dtype",
        plant=stored("layers.1.ffn.shared_experts.w1.weight", np.zeros((128, 256), "i4")),
    ),
}
SCALES: dict[str, Defect] = {
    "a scale that is no number": Defect(
        "scale_range",
        plant=stored("layers.1.attn.wkv.weight_scale", np.array([[0.1, np.nan]], "f4")),
    ),
    "an infinite scale of INT4": Defect(
        "scale_range",
        plant=stored(f"{E}.weight_scale", np.full((128, 2), np.inf).astype(tiny.BF16)),
    ),
    "a negative scale of FP8": Defect(
        "scale_range",
        plant=stored("layers.1.attn.wkv.weight_scale", np.array([[0.1, -0.1]], "f4")),
    ),
    "a negative scale of INT4": Defect(
        "scale_negative",
        plant=stored(f"{E}.weight_scale", np.full((128, 2), -0.1).astype(tiny.BF16)),
        severity="warning",
    ),
    "a scale of zero": Defect(
        "scale_zero",
        plant=stored(f"{E}.weight_scale", np.zeros((128, 2)).astype(tiny.BF16)),
        severity="warning",
    ),
    "an exponent that is no number": Defect(
        "scale_range", dspark, stored(f"{E}.scale", np.full((128, 8), 255, "u1").view(tiny.E8M0))
    ),
    "a second scale that is no number": Defect(
        "scale_range", target_nvfp4, stored(f"{E}.weight_scale_2", np.array(np.nan, "f4"))
    ),
    "a NaN among FP8 scales of NVFP4": Defect(
        "scale_range",
        target_nvfp4,
        stored(f"{E}.weight_scale", np.full((128, 16), 0x7F, "u1").view(tiny.E4M3)),
    ),
}


def by_modelopt(excluded: list[str]):
    """NVFP4 as ModelOpt says it in a file of its own, which is written by `damage`."""

    def make() -> Tiny:
        made = target_nvfp4()
        made.config.pop("quantization_config")
        return made

    def damage(folder: Path) -> None:
        section = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": excluded}
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))

    return make, damage


MODELOPT_MAKE, MODELOPT_FILE = by_modelopt(["mtp.*", "*.attn.*"])
FORMATS["ModelOpt's own file ignores a layer"] = Defect(
    "quant_unmatched", MODELOPT_MAKE, damage=by_modelopt(["mtp.*", "layers.2.*"])[1]
)
CASES = {**DSPARK, **FORMATS, **SCALES, **FILES}
SOUND: dict[str, tuple] = {
    "DSpark": (dspark, PATCHED),
    "NVFP4 and a draft as it was": (target_nvfp4, Target("0.33.0", "0.33.0-nvfp4")),
    "NVFP4 and its draft": (lambda: target_nvfp4(draft=True), PATCHED),
    "NVFP4 by groups": (grouped_nvfp4, PATCHED),
    "DSpark of one stage": (lambda: one_stage(), PATCHED),
}


def one_stage() -> Tiny:
    """As vLLM reads it with `n_mtp_layers: 1`: the first stage is the last too."""
    made = dspark()
    dropped("mtp.1.")(made)
    for name in [n for n in made.tensors if n.startswith(LAST)]:
        rest = name.removeprefix(LAST)
        if rest.startswith(("norm.", "hc_head", "markov", "confidence")):
            made.rename(name, f"mtp.0.{rest}")
        else:
            made.pop(name)
    made.config.update(n_mtp_layers=1, compress_ratios=[*tiny.RATIOS, 0])
    return made


__all__ = ["CASES", "MODELOPT_FILE", "MODELOPT_MAKE", "SOUND"]
