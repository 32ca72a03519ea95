"""Checks of how experts are stored where no config groups say it: DeepSeek's own format, and what
ModelOpt makes of it (`moe_quant_algo`, `ignore`, `quantized_layers`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from runbook.steps.checkpoint.layout import Layout
from runbook.steps.checkpoint.lint.subject import QUANTISED, Fault, Stored, Subject, fault
from runbook.steps.checkpoint.patterns import Patterns
from runbook.steps.checkpoint.quantization import MODELOPT, NATIVE, Quantization

GROUPED = "compressed-tensors"
METHODS: dict[Stored, frozenset[str]] = {
    "int4": frozenset({GROUPED}),
    "fp8": frozenset({NATIVE, GROUPED, "deepseek_v4_fp8"}) | MODELOPT,
    "mxfp4": frozenset({NATIVE, GROUPED, "mxfp4", "deepseek_v4_fp8"}) | MODELOPT,
    "nvfp4": frozenset({GROUPED}) | MODELOPT,
}
"""The quant_methods under which vLLM loads weights that are stored so."""
EXPERT_DTYPES = {"fp4": "mxfp4", "fp8": "fp8"}
"""What `expert_dtype` of DeepSeek-V4 says of its experts; fp4 if it is absent."""
ALGORITHMS = {"NVFP4": "nvfp4", "MXFP4": "mxfp4", "FP8": "fp8", "FP8_PB_WO": "fp8"}


def method(about: Subject, layout: Layout) -> Iterator[Fault]:
    """Whether the method of the config is one for what is there."""
    named = about.quantization.method
    stored: dict[Stored, list[str]] = defaultdict(list)
    for linear in layout.linears.values():
        kind = about.stored(linear)
        if kind in QUANTISED:
            stored[kind].append(linear.base)
    for kind, names in stored.items():
        fits = named in METHODS[kind] or (kind == "nvfp4" and about.quantization.modelopt)
        if not fits:
            yield from fault(
                "quant_method", f"{{n}} weights are {kind}, quant_method is {named!r:.40}", names
            )


def experts(about: Subject, layout: Layout) -> dict[str, set[Stored]]:
    """How the experts of each layer are stored, by their prefix in the checkpoint."""
    layers: dict[str, set[Stored]] = defaultdict(set)
    for linear in layout.linears.values():
        if linear.role == "expert" and (kind := about.stored(linear)) != "absent":
            layers[linear.base.rsplit(".", 2)[0]].add(kind)
    return dict(layers)


def check(about: Subject, layout: Layout) -> Iterator[Fault]:
    """Experts of a checkpoint without config groups."""
    layers = experts(about, layout)
    torn = [prefix for prefix, kinds in layers.items() if len(kinds) > 1]
    yield from fault("quant_torn", "the experts of {n} layers are stored differently", torn)
    whole = {prefix: next(iter(kinds)) for prefix, kinds in layers.items() if len(kinds) == 1}
    native = whole
    if about.quantization.modelopt:
        native = {
            p: kind for p, kind in whole.items() if not algorithm(about.quantization, layout, p)
        }
        yield from _modelopt(about, layout, whole)
    if layout.family != "deepseek_v4":
        return
    declared = about.checkpoint.config.get("expert_dtype", "fp4")
    wanted = EXPERT_DTYPES.get(str(declared), "plain")
    others = [p for p, kind in native.items() if kind not in (wanted, "nvfp4")]
    yield from fault(
        "expert_format",
        f"expert_dtype is {declared!r:.40}, and the experts of {{n}} layers are stored otherwise",
        others,
    )


def _modelopt(about: Subject, layout: Layout, whole: dict[str, Stored]) -> Iterator[Fault]:
    quantization = about.quantization
    found: dict[str, list[str]] = defaultdict(list)
    drafts = frozenset(layout.mtp_prefixes)
    for prefix, kind in whole.items():
        named = algorithm(quantization, layout, prefix)
        if named and kind != ALGORITHMS.get(named, kind):
            found["quant_scheme"].append(prefix)
        if kind == "nvfp4" and not named:
            found["quant_unmatched"].append(prefix)
        everywhere = quantization.method == NATIVE and quantization.moe_algorithm
        if everywhere and layout.layer(prefix) in drafts:
            wanted = ALGORITHMS.get(quantization.moe_algorithm, kind)
            if kind != wanted:
                found["draft_format"].append(prefix)
    details = {
        "quant_scheme": "the experts of {n} layers are not stored as the config says of them",
        "quant_unmatched": "the experts of {n} layers are NVFP4 and ignored, or not named by "
        "quantized_layers",
        "draft_format": f"the experts of {{n}} layers of the draft are not "
        f"{quantization.moe_algorithm:.20}",
    }
    for rule, names in found.items():
        yield from fault(rule, details[rule], names)


def algorithm(quantization: Quantization, layout: Layout, prefix: str) -> str:
    """The algorithm that ModelOpt's config gives the experts of a layer, by their prefix in the
    checkpoint; empty for none."""
    names = [prefix, layout.vllm_name(prefix)]
    inside = [f"{name}.0.{leaf}" for name in names for leaf in ("w1", "gate_proj")]
    if any(map(quantization.ignored_names.match, [*names, *inside])):
        return ""
    if not quantization.layers:
        return quantization.algorithm or "NVFP4"
    for name in (*names, *inside):
        if name in quantization.layers:
            return quantization.layers[name]
    for glob, named in _globs(quantization.layers):
        if any(map(glob.match, [*names, *inside])):
            return named
    return ""


def _globs(layers: object) -> list[tuple[Patterns, str]]:
    """The entries of `quantized_layers` that hold a `*`: a few, whatever there are."""
    assert isinstance(layers, dict)
    globs = [(name, algorithm) for name, algorithm in layers.items() if "*" in name][:100]
    return [(Patterns.of_globs([name]), algorithm) for name, algorithm in globs]
