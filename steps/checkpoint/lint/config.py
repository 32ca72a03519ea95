"""Checks of config.json's quantization_config against the tensors, as vLLM will read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from runbook.steps.checkpoint.layout import Layout, Linear, Role
from runbook.steps.checkpoint.lint import formats
from runbook.steps.checkpoint.lint.subject import QUANTISED, Fault, Stored, Subject, fault
from runbook.steps.checkpoint.quantization import PROBES

UNQUANTISED: Mapping[str, tuple[Role, str]] = {
    "compressor_quantised": ("compressor", "{n} weights of compressors are quantised"),
    "indexer_weights_quantised": ("indexer_weights", "{n} indexer.weights_proj are quantised"),
}
"""By rule: a role that some builds of vLLM keep unquantised whatever the config says."""


def check(about: Subject, layout: Layout) -> Iterator[Fault]:
    quantised = [x.base for x in layout.linears.values() if about.stored(x) in QUANTISED]
    if not about.checkpoint.quantization:
        yield from fault("quantization_absent", "{n} quantised weights", quantised)
        return
    yield from formats.method(about, layout)
    yield from _expressions(about)
    if not about.quantization.compressed_tensors:
        yield from formats.check(about, layout)
        return
    yield from _arguments(about, layout)
    yield from _matching(about, layout)
    yield from _experts(about, layout)
    for rule, (role, detail) in UNQUANTISED.items():
        linears = [x for x in layout.linears.values() if x.role == role]
        yield from fault(rule, detail, [x.base for x in linears if about.stored(x) in QUANTISED])


def _expressions(about: Subject) -> Iterator[Fault]:
    lists = [s.patterns for s in about.quantization.schemes] + [about.quantization.ignored_names]
    invalid = [text for patterns in lists for text in patterns.invalid]
    yield from fault("target_invalid", "{n} targets are no regular expressions", invalid)
    others = [text for patterns in lists for text in patterns.unexamined]
    yield from fault("target_unexamined", "{n} expressions could not be matched here", others)


def _arguments(about: Subject, layout: Layout) -> Iterator[Fault]:
    config = about.checkpoint.config
    orders = {s.name: s.weights.get("actorder") for s in about.quantization.schemes}
    for name, order in orders.items():
        if order in ("group", "dynamic"):
            yield Fault("actorder_group", f"config group {name}: actorder {order}", (name,))
        elif order:
            detail = f"config group {name}: actorder {order!r:.40}"
            yield Fault("actorder_static", detail, (name,))
    if layout.family != "deepseek_v4":
        return
    if not about.checkpoint.quantization.get("scale_fmt"):
        yield Fault("scale_fmt", "quantization_config lacks scale_fmt")
    packed = any(about.stored(x) == "int4" for x in layout.linears.values())
    if config.get("expert_dtype", "fp4") == "fp4":
        yield Fault("expert_dtype", "expert_dtype is fp4, or absent and fp4 by default")
    if packed and config.get("swiglu_limit"):
        yield Fault("swiglu_clamp", f"swiglu_limit is {config['swiglu_limit']!r:.40}")


def _matching(about: Subject, layout: Layout) -> Iterator[Fault]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, parts in modules(layout):
        kinds = {about.stored(x) for x in parts} - {"absent"}
        if not kinds:
            continue
        if len(kinds) > 1:
            found["quant_torn"].append(name)
            continue
        (kind,) = kinds
        part_names = [layout.vllm_name(x.base) for x in parts] if len(parts) > 1 else []
        scheme = about.quantization.linear(name, part_names)
        if kind in QUANTISED:
            if scheme is None:
                found["quant_unmatched"].append(name)
            elif scheme.stored != kind:
                found["quant_scheme"].append(name)
            elif part_names and not scheme.patterns.match(name) and "Linear" not in scheme.targets:
                found["fused_targets"].append(name)
        elif scheme is not None:
            found["quant_overmatched"].append(name)
    details = {
        "quant_torn": "{n} fused modules have differently stored parts",
        "quant_unmatched": "{n} quantised modules match no target, or are ignored",
        "quant_scheme": "{n} modules match a config group of another format",
        "fused_targets": "{n} fused modules are not named by a target",
        "quant_overmatched": "{n} unquantised modules match a target and are not ignored",
    }
    for rule, names in found.items():
        yield from fault(rule, details[rule], names)


def modules(layout: Layout) -> Iterator[tuple[str, Sequence[Linear]]]:
    """The linears that vLLM builds, routed experts left out: name, and the weights it joins."""
    joined: dict[str, list[Linear]] = defaultdict(list)
    for linear in layout.linears.values():
        if linear.role == "expert":
            continue
        prefix, _, leaf = layout.vllm_name(linear.base).rpartition(".")
        fused, leaves = layout.fused.get(linear.role, ("", ()))
        if leaf in leaves:
            leaf = fused
        elif leaf == "w2":  # of shared experts
            leaf = "down_proj"
        joined[f"{prefix}.{leaf}"].append(linear)
    yield from joined.items()


def _experts(about: Subject, layout: Layout) -> Iterator[Fault]:
    """The experts of a layer share one scheme, found under the names of `PROBES`."""
    layers: dict[str, set[Stored]] = defaultdict(set)
    for linear in layout.linears.values():
        if linear.role == "expert":
            prefix = layout.vllm_name(linear.base).rsplit(".", 2)[0]
            layers[prefix].add(about.stored(linear))
    found: dict[str, list[str]] = defaultdict(list)
    for prefix, kinds in layers.items():
        present = kinds - {"absent"}
        if not present:
            continue
        if len(present) > 1:
            found["quant_torn"].append(prefix)
            continue
        (kind,) = present
        scheme = about.quantization.experts(prefix)
        if kind in QUANTISED and scheme is None:
            rule = "quant_unmatched" if _ignored(about, prefix) else "expert_probe"
            found[rule].append(prefix)
        elif kind in QUANTISED and scheme is not None and scheme.stored != kind:
            found["quant_scheme"].append(prefix)
        elif kind not in QUANTISED and scheme is not None:
            found["quant_overmatched"].append(prefix)
    details = {
        "quant_torn": "the experts of {n} layers are stored differently",
        "quant_unmatched": "the experts of {n} layers are quantised and ignored",
        "expert_probe": "the experts of {n} layers match no target as experts.0.gate_proj",
        "quant_scheme": "the experts of {n} layers match a config group of another format",
        "quant_overmatched": "the unquantised experts of {n} layers match a target",
    }
    for rule, names in found.items():
        yield from fault(rule, details[rule], names)


def _ignored(about: Subject, prefix: str) -> bool:
    return about.quantization.ignored([f"{prefix}.0.{probe}" for probe in PROBES])
