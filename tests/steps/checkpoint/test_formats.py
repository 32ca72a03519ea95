"""What ModelOpt's config says of the experts of a layer, by whichever of their names."""

from __future__ import annotations

import pytest

from runbook.steps.checkpoint.layout import Layout
from runbook.steps.checkpoint.lint.formats import algorithm
from runbook.steps.checkpoint.quantization import Quantization

EXPERTS = "layers.1.ffn.experts"
MODEL = f"model.{EXPERTS}"


def listed(*names, algorithm="mxfp4"):
    return {"quantized_layers": {name: {"quant_algo": algorithm} for name in names}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # One algorithm for all that no list names.
        ({"moe_quant_algo": "mxfp4"}, "MXFP4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "FP8"),
        ({"quant_method": "modelopt"}, "NVFP4"),
        # Names of the checkpoint and of vLLM, of the experts and of the first one's parts.
        (listed(EXPERTS), "MXFP4"),
        (listed(MODEL), "MXFP4"),
        (listed(f"{EXPERTS}.0.w1"), "MXFP4"),
        (listed(f"{EXPERTS}.0.gate_proj"), "MXFP4"),
        (listed(f"{MODEL}.0.w1"), "MXFP4"),
        (listed(f"{MODEL}.0.gate_proj"), "MXFP4"),
        (listed("layers.2.ffn.experts", f"{EXPERTS}.1.w1", "layers.1.ffn"), ""),
        # Patterns, of which the first counts, after names.
        (listed("layers.1.*"), "MXFP4"),
        (listed("model.layers.1.*"), "MXFP4"),
        (listed("*.0.w1"), "MXFP4"),
        (listed("*.0.gate_proj"), "MXFP4"),
        (listed("layers.2.*", "*.1.w1"), ""),
        ({"quantized_layers": {"layers.1.*": {"quant_algo": "FP8"}, "*": {"quant_algo": "MXFP4"},
                               "layers.2*": {"quant_algo": "NVFP4"}}}, "FP8"),
        ({"quantized_layers": {"*": {"quant_algo": "FP8"}, EXPERTS: {"quant_algo": "MXFP4"}}},
         "MXFP4"),
        # What is ignored has none, whatever is said of it.
        ({"moe_quant_algo": "MXFP4", "ignore": ["layers.1.*"]}, ""),
        ({"moe_quant_algo": "MXFP4", "ignore": [EXPERTS]}, ""),
        ({"moe_quant_algo": "MXFP4", "ignore": [MODEL]}, ""),
        ({"moe_quant_algo": "MXFP4", "ignore": [f"{MODEL}.0.gate_proj"]}, ""),
        ({**listed(EXPERTS), "ignore": [f"{EXPERTS}.0.w1"]}, ""),
        ({"moe_quant_algo": "MXFP4", "ignore": ["layers.2.*", f"{EXPERTS}.1.w1"]}, "MXFP4"),
    ],
)  # fmt: skip
def test_the_algorithm_of_the_experts_of_a_layer(config, expected):
    layout = Layout("deepseek_v4", layers=4)
    assert algorithm(Quantization(config), layout, EXPERTS) == expected


@pytest.mark.parametrize(("before", "expected"), [(99, "MXFP4"), (100, "")])
def test_of_patterns_the_first_hundred_are_read(before, expected):
    config = listed(*(f"other.{i}.*" for i in range(before)), "layers.1.*")
    assert algorithm(Quantization(config), Layout("deepseek_v4", layers=4), EXPERTS) == expected


def test_the_algorithm_of_a_draft_by_the_number_that_vllm_gives_it():
    config = Quantization(listed("model.layers.5.ffn.experts"))
    assert algorithm(config, Layout("deepseek_v4", layers=4), "mtp.1.ffn.experts") == "MXFP4"
    assert algorithm(config, Layout("deepseek_v4", layers=3), "mtp.1.ffn.experts") == ""
