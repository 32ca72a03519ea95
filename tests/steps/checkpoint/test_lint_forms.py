"""In which forms a tensor may be stored, and what the config may say of it."""

from __future__ import annotations

import numpy as np
import pytest

from runbook.steps.checkpoint.lint import lint
from tests.steps.checkpoint.cases import fp8, unquantised
from tests.steps.checkpoint.drafts import dspark, grouped_nvfp4, target_nvfp4
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import CPU, V22, V33, clean, group, quant


def experts_unquantised(t):
    for layer in {n.split("ffn.")[0] for n in t.tensors if ".experts." in n}:
        unquantised(f"{layer}ffn.experts.")(t)


E = "mtp.0.ffn.experts.1.w2."
N = "layers.1.ffn.experts.0.w1."


def retyped(name, dtype):
    return lambda t: t.tensors.update({name: t.tensors[name].astype(dtype)})


def stored(name, *value, dtype="f4"):
    return lambda t: t.tensors.update({name: np.array(value, dtype)})


@pytest.mark.parametrize(
    ("make", "plant", "rule"),
    [
        # INT4: words, scales of 16 or 32 bits, and what they stand for as two whole numbers.
        (clean, retyped(f"{E}weight_scale", "i4"), "packed_dtype"),
        (clean, retyped(f"{E}weight_scale", "f2"), None),
        (clean, retyped(f"{E}weight_shape", "i4"), None),
        (clean, retyped(f"{E}weight_shape", "f8"), "weight_shape"),
        (clean, stored(f"{E}weight_shape", 256, 128, 1, dtype="i8"), "weight_shape"),
        # A group is as long as the config says, 128 if it does not.
        (clean, lambda t: group(t, 1)["weights"].pop("group_size"), None),
        (clean, lambda t: group(t, 1)["weights"].update(group_size=64), "packed_shape"),
        (clean, lambda t: group(t, 1)["weights"].update(group_size=96), "packed_shape"),
        (clean, lambda t: group(t, 1)["weights"].update(actorder="dynamic"), "actorder_group"),
        (clean, lambda t: group(t, 1)["weights"].update(actorder=None), None),
        # NVFP4: FP8 for each group, one F32 for all, and one for the inputs.
        (target_nvfp4, retyped(f"{N}weight_scale", "f4"), "scale_dtype"),
        (target_nvfp4, retyped(f"{N}input_scale", tiny.BF16), "scale_dtype"),
        (target_nvfp4, stored(f"{N}input_scale", 0.1, 0.1), "scale_shape"),
        (target_nvfp4, stored(f"{N}input_scale", 0.1), None),
        (target_nvfp4, stored(f"{N}weight_scale_2", 0.1), None),
        (target_nvfp4, lambda t: t.pop(*[n for n in t.tensors if n.endswith("input_scale")]), None),
        # MXFP4: exponents, under either name.
        (dspark, lambda t: t.tensors.update({f"{N}scale": t.tensors[f"{N}scale"].view("u1")}),
         None),
        (dspark, retyped(f"{N}scale", "f4"), "scale_dtype"),
        (dspark, lambda t: t.config.pop("expert_dtype"), None),
        (dspark, lambda t: t.config.update(expert_dtype="bf16"), "expert_format"),
        (dspark, lambda t: (experts_unquantised(t), t.config.update(expert_dtype="bf16")), None),
        # What is not quantised.
        (clean, retyped("layers.0.ffn.gate.tid2eid", "i4"), None),
        (clean, retyped("layers.1.hc_attn_fn", "f8"), None),
        (clean, retyped("norm.weight", "f2"), None),
        (clean, retyped("norm.weight", "i4"), "tensor_dtype"),
    ],
)  # fmt: skip
def test_in_which_forms_a_tensor_may_be_stored(make, plant, rule, tmp_path):
    made = make()
    plant(made)
    errors = {f.id for f in lint(made.write(tmp_path / "c"), V33) if f.severity == "error"}
    assert errors - {"draft_format"} == ({rule} if rule else set())


def test_hyper_connections_in_half_precision_are_told(tmp_path):
    made = clean()
    retyped("mtp.0.hc_attn_fn", "f2")(made)
    found = {f.id: f.tensors for f in lint(made.write(tmp_path / "c"), V33)}
    assert found["fp32_downcast"] == ("mtp.0.hc_attn_fn",) and "tensor_dtype" not in found


def torn(t):
    retyped("layers.0.attn.wq_a.weight", tiny.BF16)(t)
    t.pop("layers.0.attn.wq_a.weight_scale")


def whole_numbers(t):
    group(t, 0)["weights"].update(type="int")


def fractions(t):
    group(t, 1)["weights"].update(type="float")


def absent(t, prefix):
    t.pop(*[n for n in t.tensors if n.startswith(prefix)])


@pytest.mark.parametrize(
    ("make", "plant", "target", "told", "not_told"),
    [
        (clean, lambda t: t.config.pop("expert_dtype"), V33, {"expert_dtype"}, set()),
        (clean, whole_numbers, V33, {"quant_scheme"}, {"quant_unmatched"}),
        (clean, lambda t: (torn(t), whole_numbers(t)), V33, {"quant_torn", "quant_scheme"}, set()),
        (clean, lambda t: group(t, 0).update(targets=["Linear"]), V22, set(), {"fused_targets"}),
        (clean, lambda t: t.config.pop("swiglu_limit"), CPU, set(), {"swiglu_clamp"}),
        (grouped_nvfp4, lambda t: None, CPU, set(), {"swiglu_clamp"}),
        # What is not there is passed over, and the rest is looked at.
        (clean, lambda t: (absent(t, "layers.0.attn.w"), whole_numbers(t)), V33,
         {"tensor_missing", "quant_scheme"}, set()),
        (clean, lambda t: (absent(t, "layers.0.ffn.experts."), fractions(t)), V33,
         {"tensor_missing", "quant_scheme"}, set()),
        (clean, lambda t: (fp8("layers.0.ffn.experts.0.w1", 128, 256)(t), fractions(t)), V33,
         {"quant_torn", "quant_scheme"}, set()),
        # A module that is not fused goes by its own name alone.
        (clean, lambda t: (quant(t)["ignore"].remove("re:.*shared_experts.*"),
                           group(t, 0)["targets"].append(r"re:.*shared_experts\.w2$")), V33,
         set(), {"quant_overmatched"}),
        (clean, lambda t: (experts_unquantised(t), group(t, 1).update(targets=[])), V33, set(),
         {"expert_probe", "quant_overmatched", "quant_scheme", "quant_unmatched"}),
        # Of an algorithm that is not known nothing is said, and one for all counts in DeepSeek's
        # own method alone.
        (target_nvfp4, lambda t: quant(t).update(quant_method="modelopt"), V33, set(),
         {"draft_format", "quant_method"}),
        (target_nvfp4, lambda t: quant(t).update(moe_quant_algo="W4A8"), V33, set(),
         {"draft_format"}),
        (target_nvfp4, lambda t: quant(t)["quantized_layers"].update(
            {"layers.1.ffn.experts": {"quant_algo": "NVFP4_AWQ"}}), V33, set(),
         {"quant_scheme", "quant_unmatched"}),
        # A draft is known by its tensors where the config does not tell of it.
        (dspark, lambda t: [t.config.pop(k) for k in [*t.config] if k.startswith("dspark_")],
         V33, {"config_field"}, {"mtp_incomplete", "tensor_unknown"}),
    ],
)  # fmt: skip
def test_what_the_config_says_is_held_against_the_tensors(
    make, plant, target, told, not_told, tmp_path
):
    made = make()
    plant(made)
    ids = {f.id for f in lint(made.write(tmp_path / "c"), target)}
    assert told <= ids and not not_told & ids
