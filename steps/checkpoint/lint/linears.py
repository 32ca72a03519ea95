"""Checks of weights that may be quantised: how they are stored, and whether their scales fit."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterator

from runbook.steps.checkpoint.layout import Layout, Linear
from runbook.steps.checkpoint.lint.subject import (
    FLOATS,
    GLOBAL_SCALES,
    INPUT_SCALES,
    Fault,
    Stored,
    Subject,
    fault,
)

E8M0 = "F8_E8M0"
FP8_BLOCK = (128, 128)
GROUPS = {"mxfp4": 32, "nvfp4": 16}
"""Values that share a scale."""
WORD = 8
"""INT4 values in one I32 word."""

Found = dict[str, list[str]]
"""Names of tensors by rule."""

_DETAIL = {
    "tensor_shape": "{n} weights have another shape than the config says",
    "scale_missing": "{n} quantised weights lack a scale",
    "scale_orphan": "{n} scales belong to unquantised weights",
    "scale_name": "{n} scales are not named weight_scale",
    "scale_u8": "{n} scales are E8M0 exponents declared as U8",
    "scale_dtype": "{n} scales have a dtype that no scale of their format has",
    "scale_shape": "{n} scales do not fit their weight's blocks",
    "packed_dtype": "{n} packed weights are not I32, or their scales not 16 or 32 bit floats",
    "packed_shape": "{n} packed weights do not fit the shape that the config says",
    "weight_shape": "{n} weight_shape tensors are absent or wrong",
    "weight_dtype": "{n} weights have a dtype that is not loaded",
}


def check(about: Subject, layout: Layout) -> Iterator[Fault]:
    found: Found = defaultdict(list)
    inputs: dict[bool, list[str]] = {True: [], False: []}
    for linear in layout.linears.values():
        stored = about.stored(linear)
        if stored == "int4":
            _packed(about, linear, found)
        elif stored == "fp8":
            _blocks(about, linear, found)
        elif stored in GROUPS:
            _fp4(about, linear, stored, found)
            if stored == "nvfp4":
                has = about.first(linear, INPUT_SCALES) is not None
                inputs[has].append(linear.base + ".weight")
        elif stored == "plain":
            weight = about.tensor(linear.base + ".weight")
            if weight is not None and weight.shape != linear.shape:
                found["tensor_shape"].append(weight.name)
            scale = about.scale(linear)
            if scale is not None:
                found["scale_orphan"].append(scale.name)
        elif stored == "other":
            found["weight_dtype"].append(linear.base + ".weight")
    if inputs[True]:  # weights alone are quantised where none has a scale of its inputs
        found["scale_missing"] += inputs[False]
    for rule, names in found.items():
        yield from fault(rule, _DETAIL[rule], names)


def _packed(about: Subject, linear: Linear, found: Found) -> None:
    out, columns = linear.shape
    words = about.tensor(linear.base + ".weight_packed")
    assert words is not None
    if words.dtype != "I32":
        found["packed_dtype"].append(words.name)
    if words.shape != (out, columns // WORD) or columns % WORD:
        found["packed_shape"].append(words.name)
    scale = about.tensor(linear.base + ".weight_scale")
    if scale is None:
        found["scale_missing"].append(words.name)
    else:
        size = about.quantization.int4_group or min(128, columns)
        if scale.dtype not in FLOATS:
            found["packed_dtype"].append(scale.name)
        if scale.shape != (out, columns // size) or columns % size:
            found["packed_shape"].append(scale.name)
    _unpacked_shape(about, linear, found)


def _unpacked_shape(about: Subject, linear: Linear, found: Found) -> None:
    """The tensor weight_shape, which says what the packed words stand for."""
    name = linear.base + ".weight_shape"
    shape = about.tensor(name)
    code = {"I64": "<2q", "I32": "<2i"}.get(shape.dtype) if shape is not None else None
    if shape is None or code is None or shape.shape != (2,):
        found["weight_shape"].append(name)
        return
    raw = about.checkpoint.read(shape)
    if raw is None or len(raw) != struct.calcsize(code):
        return  # not at hand, or cut off, which is told of the file
    if struct.unpack(code, raw) != linear.shape:
        found["weight_shape"].append(name)


def _blocks(about: Subject, linear: Linear, found: Found) -> None:
    weight = about.tensor(linear.base + ".weight")
    assert weight is not None
    if weight.shape != linear.shape:
        found["tensor_shape"].append(weight.name)
    scale = about.scale(linear)
    if scale is None:
        found["scale_missing"].append(weight.name)
        return
    if about.quantization.compressed_tensors and not scale.name.endswith(".weight_scale"):
        found["scale_name"].append(scale.name)
    rows, columns = (math.ceil(n / b) for n, b in zip(linear.shape, FP8_BLOCK, strict=True))
    if scale.shape != (rows, columns):
        found["scale_shape"].append(scale.name)
    if scale.dtype == "U8":
        found["scale_u8"].append(scale.name)
    elif scale.dtype not in FLOATS and scale.dtype != E8M0:
        found["scale_dtype"].append(scale.name)


def _fp4(about: Subject, linear: Linear, stored: Stored, found: Found) -> None:
    """Two values a byte and a scale for each group; NVFP4 has a second scale, one number."""
    out, columns = linear.shape
    group = GROUPS[stored]
    weight = about.first(linear, (".weight_packed", ".weight"))
    assert weight is not None
    if weight.shape != (linear.shape if weight.dtype == "F4" else (out, columns // 2)):
        found["tensor_shape"].append(weight.name)
    scale = about.scale(linear)
    if scale is None:
        found["scale_missing"].append(weight.name)
    else:
        if scale.shape != (out, columns // group) or columns % group:
            found["scale_shape"].append(scale.name)
        if scale.dtype not in (("F8_E4M3",) if stored == "nvfp4" else (E8M0, "U8")):
            found["scale_dtype"].append(scale.name)
    if stored != "nvfp4":
        return
    second = about.first(linear, GLOBAL_SCALES)
    if second is None:
        found["scale_missing"].append(weight.name)
        return
    for extra in (second, about.first(linear, INPUT_SCALES)):
        if extra is None:
            continue
        if extra.dtype != "F32":
            found["scale_dtype"].append(extra.name)
        if math.prod(extra.shape) != 1:
            found["scale_shape"].append(extra.name)
