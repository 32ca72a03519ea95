"""What separates the vLLM builds that a checkpoint may be meant for, as data.

A quirk is a property of a build that turns something in a checkpoint into a fault. Read in the
sources of the named releases. A release by its number is the stock one; `-patched` is the same
with the patch series of the step `vllm`. `abad5dc71` is the commit of the fork jasl/vllm with
published results for this checkpoint, patched as its authors do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

QUIRKS: Final[Mapping[str, str]] = {
    "scale_fmt_required": "reads quantization_config.scale_fmt without a default",
    "compressor_unquantised": "builds compressor and indexer.weights_proj without quantisation",
    "actorder_breaks_tp": "does not shard the scales of w2 when actorder is set (vllm#41511)",
    "actorder_group_refused": "refuses group and dynamic activation order",
    "fused_names_unmapped": "looks for the fused names in targets, has no packed_modules_mapping",
    "fp4_renames_scales": "with expert_dtype fp4 renames weight_scale to weight_scale_inv",
    "gate_bias_strict": "loads the gate's bias by its upstream name only",
    "swiglu_unclamped": "runs W4A16 experts without the SwiGLU limit",
}

_V32: Final = frozenset({"compressor_unquantised", "actorder_group_refused", "fp4_renames_scales"})

TARGETS: Final[Mapping[str, frozenset[str]]] = {
    "0.22.1": frozenset(
        {
            "scale_fmt_required",
            "compressor_unquantised",
            "actorder_breaks_tp",
            "fused_names_unmapped",
            "gate_bias_strict",
            "swiglu_unclamped",
        }
    ),
    "0.22.1-patched": frozenset({"gate_bias_strict"}),
    "0.32.0": _V32,
    "0.32.0-cpu": _V32 | {"swiglu_unclamped"},
    "0.33.0": _V32,
    "0.33.0-patched": _V32 - {"compressor_unquantised"},
    "abad5dc71": frozenset({"actorder_breaks_tp"}),
}


def quirks(target: str) -> frozenset[str]:
    """The quirks of a vLLM build. Raises `KeyError` for one that is not known here."""
    return TARGETS[target]
