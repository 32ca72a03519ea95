"""Checks of tensors against the architecture: presence, names, shapes and dtypes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from runbook.steps.checkpoint.layout import Layout
from runbook.steps.checkpoint.lint.subject import (
    FLOATS,
    GLOBAL_SCALES,
    INPUT_SCALES,
    PACKED,
    SCALES,
    Fault,
    Subject,
    fault,
)

DRIFT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.attn_hc\.(fn|base|scale)$"), r".hc_attn_\1"),
    (re.compile(r"\.ffn_hc\.(fn|base|scale)$"), r".hc_ffn_\1"),
    (re.compile(r"(^|\.)hc_head\.hc_(fn|base|scale)$"), r"\1hc_head_\2"),
)
GATE_BIAS = (re.compile(r"\.ffn\.gate\.e_score_correction_bias$"), ".ffn.gate.bias")
SUFFIXES = frozenset(
    {"weight", *(s[1:] for s in (*SCALES, *PACKED, *GLOBAL_SCALES, *INPUT_SCALES))}
)
_EXPERT = re.compile(r"\.experts\.\d+\.")
INTEGERS = frozenset({"I32", "I64"})


def renamed(name: str) -> str | None:
    """The upstream name of a tensor that goes by its name in transformers; None otherwise."""
    if not ("hc" in name or "e_score" in name):  # of most names it need not be searched for
        return None
    for pattern, upstream in (*DRIFT, GATE_BIAS):
        if pattern.search(name):
            return pattern.sub(upstream, name)
    return None


def check(about: Subject, layout: Layout) -> Iterator[Fault]:
    yield from _presence(about, layout)
    yield from _plains(about, layout)


def _presence(about: Subject, layout: Layout) -> Iterator[Fault]:
    names = about.checkpoint.index
    drift = {name: new for name in names if (new := renamed(name)) and new not in names}
    if layout.family == "deepseek_v4":
        gate = [n for n in drift if GATE_BIAS[0].search(n)]
        yield from fault("gate_bias_name", "{n} tensors ffn.gate.e_score_correction_bias", gate)
        others = [n for n in drift if not GATE_BIAS[0].search(n)]
        yield from fault("name_drift", "{n} tensors by their name in transformers", others)
    have = set(names) | set(drift.values()) | {t.name for t in about.checkpoint.stale}
    bases = {n.rpartition(".")[0] for n in have if n.endswith((".weight", ".weight_packed"))}
    missing = [p for p in layout.plains if p not in have and p not in layout.optional]
    missing += [f"{b}.weight" for b in layout.linears if b not in bases]
    # Of a DSpark draft all stages are built; of MTP blocks those that are declared too many are
    # told as such.
    drafts = frozenset(layout.mtp_prefixes)
    blocks = frozenset(about.mtp_blocks())
    expected = drafts if blocks and layout.draft == "dspark" else blocks
    dspark = layout.draft == "dspark"
    yield from fault(
        "dspark_incomplete" if dspark else "mtp_incomplete",
        f"the {'DSpark draft' if dspark else 'MTP block'} lacks {{n}} tensors",
        sorted(m for m in missing if layout.layer(m) in expected),
    )
    body = [m for m in missing if layout.layer(m) not in drafts]
    yield from _missing_in_layers(layout, body, have)
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
    return _EXPERT.sub(".experts.*.", name[len(layout.layer(name)) :])


def _unknown(layout: Layout, names: dict[str, str]) -> Iterator[str]:
    for name in names:
        base, _, suffix = name.rpartition(".")
        if (
            name in layout.plains
            or name in layout.aliases
            or (base in layout.linears and suffix in SUFFIXES)
            or renamed(name)
        ):
            continue
        yield name


def _plains(about: Subject, layout: Layout) -> Iterator[Fault]:
    downcast, shapes, dtypes = [], [], []
    for plain in layout.plains.values():
        tensor = about.tensor(plain.name)
        if tensor is None:
            continue
        if tensor.shape != plain.shape:
            shapes.append(plain.name)
        if plain.kind == "f32" and tensor.dtype in ("BF16", "F16"):
            downcast.append(plain.name)
        elif tensor.dtype not in (INTEGERS if plain.kind == "int" else FLOATS):
            dtypes.append(plain.name)
    yield from fault("tensor_shape", "{n} tensors have another shape than the config says", shapes)
    yield from fault("fp32_downcast", "{n} tensors are stored in 16 bits", downcast)
    yield from fault("tensor_dtype", "{n} tensors have a dtype that is not loaded", dtypes)
