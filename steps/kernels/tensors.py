"""What a checkpoint stores for each weight: tensor names, safetensors dtypes, shapes, content.

The content is noise of a sane size from a pool, or a small array: no value is infinite or NaN,
norms are one, hyper-connections a plain residual. What such a model says means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import ml_dtypes
import numpy as np

from runbook.steps.checkpoint.layout import Layout, Linear, Plain, layout
from runbook.steps.checkpoint.lint.formats import algorithm
from runbook.steps.checkpoint.quantization import Quantization

Pool = Literal["int4", "fp8", "fp8_scale", "noise", "scale", "noise32"]
Form = Literal["int4", "fp8", "fp4", "nvfp4", "plain"]

SIZES = {"I32": 4, "I64": 8, "F32": 4, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "U8": 1}
"""Bytes of one element, by the dtype's name in safetensors."""
BLOCK = 128
FP4_GROUP = 32
NVFP4_GROUP = 16
WORD = 8
"""INT4 values in one I32 word."""
FP8_SCALE = 2.0**-6
NVFP4_SCALE, NVFP4_INPUT_SCALE = 2.0**-7, 2.0**-6
E8M0_FP8, E8M0_FP4 = 121, 120
"""The exponents of 2^-6 and 2^-7 as F8_E8M0 stores them."""


class UnknownQuantization(Exception):
    """The config's quantisation is none that can be written here."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file. `content` names a pool of noise, or is the tensor itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Pool | np.ndarray[Any, Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


def shards(config: Mapping[str, Any]) -> dict[str, list[Stored]]:
    """The tensors of a complete checkpoint, by the prefix of the layer that they belong to (empty
    for embedding, head and last norm)."""
    wanted = layout(config)
    quantization = Quantization(config.get("quantization_config") or {})
    found: dict[str, list[Stored]] = {}
    modelopt = cache(partial(algorithm, quantization, wanted))
    for linear in wanted.linears.values():
        stored = _stored(linear, wanted, quantization, str(config.get("expert_dtype")), modelopt)
        tensors = _linear(linear, quantization, stored)
        found.setdefault(wanted.layer(linear.base), []).extend(tensors)
    for plain in wanted.plains.values():
        found.setdefault(wanted.layer(plain.name), []).append(_plain(plain, config))
    return dict(sorted(found.items()))


@cache
def _everywhere(value: float, dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """One value for all of a tensor, kept once: the scales of all experts would be 9 GB."""
    return np.broadcast_to(np.array(value, dtype), shape)


def _linear(linear: Linear, quantization: Quantization, stored: Form) -> Iterator[Stored]:
    base, (out, columns) = linear.base, linear.shape
    blocks = (-(-out // BLOCK), -(-columns // BLOCK))
    if stored == "int4":
        group = quantization.int4_group or BLOCK
        yield Stored(f"{base}.weight_packed", "I32", (out, columns // WORD), "int4")
        yield Stored(f"{base}.weight_scale", "BF16", (out, columns // group), "scale")
        yield Stored(f"{base}.weight_shape", "I64", (2,), np.array(linear.shape, "<i8"))
    elif stored == "fp4":
        scale = (out, columns // FP4_GROUP)
        yield Stored(f"{base}.weight", "I8", (out, columns // 2), "int4")
        yield Stored(f"{base}.scale", "F8_E8M0", scale, _everywhere(E8M0_FP4, np.uint8, scale))
    elif stored == "nvfp4":
        yield Stored(f"{base}.weight", "U8", (out, columns // 2), "int4")
        yield Stored(f"{base}.weight_scale", "F8_E4M3", (out, columns // NVFP4_GROUP), "fp8_scale")
        yield Stored(f"{base}.weight_scale_2", "F32", (), np.array(NVFP4_SCALE, "<f4"))
        yield Stored(f"{base}.input_scale", "F32", (), np.array(NVFP4_INPUT_SCALE, "<f4"))
    elif stored == "fp8":
        yield Stored(f"{base}.weight", "F8_E4M3", linear.shape, "fp8")
        if quantization.compressed_tensors:
            scales = _everywhere(FP8_SCALE, "<f4", blocks)
            yield Stored(f"{base}.weight_scale", "F32", blocks, scales)
        else:
            scales = _everywhere(E8M0_FP8, np.uint8, blocks)
            yield Stored(f"{base}.scale", "F8_E8M0", blocks, scales)
    else:
        yield Stored(f"{base}.weight", "BF16", linear.shape, "noise")


def _stored(
    linear: Linear,
    wanted: Layout,
    quantization: Quantization,
    expert_dtype: str,
    modelopt: Callable[[str], str],
) -> Form:
    """How a linear is stored; `modelopt` says by which algorithm the experts of a prefix are."""
    if not quantization.method:
        return "plain"
    if quantization.compressed_tensors:
        name = wanted.vllm_name(linear.base)
        if linear.role == "expert":
            scheme = quantization.experts(name.rpartition(".experts.")[0] + ".experts")
        else:
            scheme = None if quantization.ignored([name]) else quantization.direct(name)
        if scheme is None:
            return "plain"
        if scheme.stored in ("int4", "fp8"):
            return scheme.stored  # type: ignore[return-value]
        raise UnknownQuantization(f"{scheme.name} stores weights as {scheme.stored}")
    if quantization.method == "fp8":  # the format of DeepSeek's own releases
        if linear.role == "expert" and expert_dtype == "fp4":
            prefix = linear.base.rpartition(".experts.")[0] + ".experts"
            made = quantization.modelopt and modelopt(prefix)
            return "nvfp4" if made == "NVFP4" else "fp4"
        return "plain" if linear.role in ("compressor", "indexer_weights") else "fp8"
    raise UnknownQuantization(f"quant_method is {quantization.method}")


def _plain(plain: Plain, config: Mapping[str, Any]) -> Stored:
    name, shape = plain.name, plain.shape
    if plain.kind == "int":
        return Stored(name, "I64", shape, _routes(shape, int(config["n_routed_experts"])))
    if plain.kind == "f32":
        leaf = name.rpartition(".")[2]
        if leaf.endswith("_fn") or leaf == "ape":
            return Stored(name, "F32", shape, "noise32")
        return Stored(name, "F32", shape, _small(leaf, shape, int(config.get("hc_mult") or 1)))
    if "norm" in name.removesuffix(".weight").rpartition(".")[2]:
        return Stored(name, "BF16", shape, np.ones(shape, ml_dtypes.bfloat16))
    return Stored(name, "BF16", shape, "noise")


def _routes(shape: tuple[int, ...], experts: int) -> np.ndarray[Any, Any]:
    """[tokens, experts a token]: each token to different experts, all of them used alike."""
    tokens, each = shape
    return (np.arange(tokens)[:, None] + 11 * np.arange(each)).astype("<i8") % experts


def _small(leaf: str, shape: tuple[int, ...], streams: int) -> np.ndarray[Any, Any]:
    """Biases are zero, scales a tenth; a hyper-connection's first mixing weights sum to one."""
    if leaf.endswith("_scale"):
        return np.full(shape, 0.1, "<f4")
    values = np.zeros(shape, "<f4")
    if leaf.startswith("hc_") and leaf.endswith("_base"):
        values[:streams] = -math.log(max(1, streams - 1))
    return values
