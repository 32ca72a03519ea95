"""Checks of tensors against the architecture: presence, names, shapes, dtypes, scales."""

from __future__ import annotations

import math
import re
import struct
from collections import defaultdict
from collections.abc import Iterator

from runbook.steps.checkpoint.headers import Tensor
from runbook.steps.checkpoint.layout import Layout, Linear, mtp_count
from runbook.steps.checkpoint.lint.subject import FLOATS, PACKED, SCALES, Fault, Subject, fault

E8M0 = "F8_E8M0"
FP8_BLOCK = (128, 128)
FP4_GROUP = 32
WORD = 8
"""INT4 values in one I32 word."""

DRIFT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.attn_hc\.(fn|base|scale)$"), r".hc_attn_\1"),
    (re.compile(r"\.ffn_hc\.(fn|base|scale)$"), r".hc_ffn_\1"),
    (re.compile(r"(^|\.)hc_head\.hc_(fn|base|scale)$"), r"\1hc_head_\2"),
)
GATE_BIAS = (re.compile(r"\.ffn\.gate\.e_score_correction_bias$"), ".ffn.gate.bias")


def renamed(name: str) -> str | None:
    """The upstream name of a tensor that goes by its name in transformers; None otherwise."""
    for pattern, upstream in (*DRIFT, GATE_BIAS):
        if pattern.search(name):
            return pattern.sub(upstream, name)
    return None


def check(about: Subject, layout: Layout) -> Iterator[Fault]:
    yield from _mtp(about, layout)
    yield from _presence(about, layout)
    yield from _plains(about, layout)
    yield from _linears(about, layout)


def _mtp(about: Subject, layout: Layout) -> Iterator[Fault]:
    declared = mtp_count(about.checkpoint.config)
    found = about.mtp_blocks()
    unlisted = any(
        t.name.startswith(p) for t in about.checkpoint.stale for p in layout.mtp_prefixes
    )
    if not found and not unlisted:
        yield Fault(
            "mtp_stripped",
            f"no tensor {layout.mtp_prefixes[0]}*; num_nextn_predict_layers is {declared}",
        )
    elif not declared:
        yield Fault(
            "mtp_undeclared",
            f"the block {layout.mtp_prefixes[0]}* is there and num_nextn_predict_layers is 0",
        )
    names = about.checkpoint.index
    absent = [a for a in layout.aliases if a.startswith(tuple(found)) and a not in names]
    if found:
        yield from fault("mtp_aliases", "{n} copies of embedding and head are not there", absent)


def _presence(about: Subject, layout: Layout) -> Iterator[Fault]:
    names = about.checkpoint.index
    drift = {name: new for name in names if (new := renamed(name)) and new not in names}
    if layout.family == "deepseek_v4":
        gate = [n for n in drift if GATE_BIAS[0].search(n)]
        yield from fault("gate_bias_name", "{n} tensors ffn.gate.e_score_correction_bias", gate)
        others = [n for n in drift if n not in set(gate)]
        yield from fault("name_drift", "{n} tensors by their name in transformers", others)
    have = set(names) | set(drift.values()) | {t.name for t in about.checkpoint.stale}
    bases = {n.rpartition(".")[0] for n in have if n.endswith((".weight", ".weight_packed"))}
    missing = [p for p in layout.plains if p not in have]
    missing += [f"{b}.weight" for b in layout.linears if b not in bases]
    blocks = tuple(about.mtp_blocks())
    drafts = tuple(layout.mtp_prefixes)
    yield from fault(
        "mtp_incomplete",
        "the MTP block lacks {n} tensors",
        sorted(m for m in missing if blocks and m.startswith(blocks)),
    )
    yield from _missing_in_layers(layout, [m for m in missing if not m.startswith(drafts)], have)
    yield from fault("tensor_unknown", "{n} unknown tensors", sorted(_unknown(layout, names)))


def _missing_in_layers(layout: Layout, missing: list[str], have: set[str]) -> Iterator[Fault]:
    """Missing in some layers is a loss; a kind missing in all may only go by another name."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in missing:
        kinds[_kind(layout, name)].append(name)
    present = {_kind(layout, name) for name in have if not name.startswith("mtp.")}
    present |= {k.rpartition(".")[0] + ".weight" for k in present if k.endswith("_packed")}
    lost = [
        n for kind, names in kinds.items() if kind in present or kind == names[0] for n in names
    ]
    yield from fault("tensor_missing", "{n} tensors of the model are missing", lost)
    for kind, names in kinds.items():
        if not (kind in present or kind == names[0]):
            yield Fault("tensor_kind_missing", f"no layer has {kind}", tuple(names))


def _kind(layout: Layout, name: str) -> str:
    prefix = layout.layer(name)
    return re.sub(r"\.experts\.\d+\.", ".experts.*.", name[len(prefix) :]) if prefix else name


def _unknown(layout: Layout, names: dict[str, str]) -> Iterator[str]:
    suffixes = {"weight", *(s[1:] for s in SCALES), *(s[1:] for s in PACKED)}
    for name in names:
        base, _, suffix = name.rpartition(".")
        if (
            name in layout.plains
            or name in layout.aliases
            or (base in layout.linears and suffix in suffixes)
            or renamed(name)
        ):
            continue
        yield name


def _plains(about: Subject, layout: Layout) -> Iterator[Fault]:
    downcast, shapes = [], []
    for plain in layout.plains.values():
        tensor = about.tensor(plain.name)
        if tensor is None:
            continue
        if tensor.shape != plain.shape:
            shapes.append(plain.name)
        if plain.kind == "f32" and tensor.dtype in ("BF16", "F16"):
            downcast.append(plain.name)
    yield from fault("tensor_shape", "{n} tensors have another shape than the config says", shapes)
    yield from fault("fp32_downcast", "{n} tensors are stored in 16 bits", downcast)


def _linears(about: Subject, layout: Layout) -> Iterator[Fault]:
    found: dict[str, list[str]] = defaultdict(list)
    native = not about.quantization.compressed_tensors
    for linear in layout.linears.values():
        stored = about.stored(linear)
        if stored == "int4":
            _packed(about, linear, found)
        elif stored == "fp8":
            _blocks(about, linear, found, native)
        elif stored == "fp4":
            _fp4(about, linear, found)
        elif stored == "plain":
            weight = about.tensor(linear.base + ".weight")
            if weight is not None and weight.shape != linear.shape:
                found["tensor_shape"].append(weight.name)
            scale = about.scale(linear)
            if scale is not None:
                found["scale_orphan"].append(scale.name)
        elif stored == "other":
            found["weight_dtype"].append(linear.base + ".weight")
    for rule, names in found.items():
        yield from fault(rule, _DETAIL[rule], names)


_DETAIL = {
    "tensor_shape": "{n} weights have another shape than the config says",
    "scale_missing": "{n} quantised weights have no scale",
    "scale_orphan": "{n} scales belong to unquantised weights",
    "scale_name": "{n} scales are not named weight_scale",
    "scale_u8": "{n} scales are E8M0 exponents declared as U8",
    "scale_dtype": "{n} scales are no floating-point numbers",
    "scale_shape": "{n} scales do not fit their weight's blocks",
    "scale_range": "{n} scales have impossible values",
    "packed_dtype": "{n} packed weights are not I32, or their scales not 16 or 32 bit floats",
    "packed_shape": "{n} packed weights do not fit the shape that the config says",
    "weight_shape": "{n} weight_shape tensors are absent or wrong",
    "weight_dtype": "{n} weights have a dtype that is not loaded",
}


def _packed(about: Subject, linear: Linear, found: dict[str, list[str]]) -> None:
    out, columns = linear.shape
    words = about.tensor(linear.base + ".weight_packed")
    assert words is not None
    if words.dtype != "I32":
        found["packed_dtype"].append(words.name)
    if words.shape != (out, columns // WORD):
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
    shape = about.tensor(linear.base + ".weight_shape")
    name = linear.base + ".weight_shape"
    if shape is None or shape.shape != (2,) or shape.dtype not in ("I64", "I32"):
        found["weight_shape"].append(name)
        return
    raw = about.checkpoint.read(shape)
    if raw is not None and struct.unpack("<2q" if shape.dtype == "I64" else "<2i", raw) != (
        out,
        columns,
    ):
        found["weight_shape"].append(name)


def _blocks(about: Subject, linear: Linear, found: dict[str, list[str]], native: bool) -> None:
    weight = about.tensor(linear.base + ".weight")
    assert weight is not None
    if weight.shape != linear.shape:
        found["tensor_shape"].append(weight.name)
    scale = about.scale(linear)
    if scale is None:
        found["scale_missing"].append(weight.name)
        return
    if not native and not scale.name.endswith(".weight_scale"):
        found["scale_name"].append(scale.name)
    rows, columns = (math.ceil(n / b) for n, b in zip(linear.shape, FP8_BLOCK, strict=True))
    if scale.shape != (rows, columns):
        found["scale_shape"].append(scale.name)
    if scale.dtype == "U8":
        found["scale_u8"].append(scale.name)
    elif scale.dtype not in FLOATS and scale.dtype != E8M0:
        found["scale_dtype"].append(scale.name)
    elif linear.mtp and not _sane(about, scale):
        found["scale_range"].append(scale.name)


def _sane(about: Subject, scale: Tensor) -> bool:
    """Whether each value of an FP8 scale is a finite number between 0 and 1."""
    raw = about.checkpoint.read(scale)
    if raw is None:
        return True
    if scale.dtype == E8M0:
        return max(raw, default=0) < 127  # the exponent of 2^0; 255 is not a number
    if scale.dtype == "BF16":
        words = struct.unpack(f"<{len(raw) // 2}H", raw)
        values = struct.unpack(
            f"<{len(words)}f", struct.pack(f"<{len(words)}I", *(w << 16 for w in words))
        )
    else:
        code = {"F16": "e", "F32": "f", "F64": "d"}[scale.dtype]
        values = struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)
    return all(0 < v < 1 for v in values)


def _fp4(about: Subject, linear: Linear, found: dict[str, list[str]]) -> None:
    weight = about.tensor(linear.base + ".weight")
    assert weight is not None
    out, columns = linear.shape
    if weight.shape not in ((out, columns // 2), linear.shape):
        found["tensor_shape"].append(weight.name)
    scale = about.scale(linear)
    if scale is None:
        found["scale_missing"].append(weight.name)
    elif scale.shape != (out, columns // FP4_GROUP):
        found["scale_shape"].append(scale.name)
    elif scale.dtype not in (E8M0, "U8"):
        found["scale_dtype"].append(scale.name)
