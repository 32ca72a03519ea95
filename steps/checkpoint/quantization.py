"""How vLLM reads `quantization_config`: by config groups (compressed-tensors), or by the method of
DeepSeek's own releases, to which ModelOpt adds its formats.

Follows `find_matched_target`, `should_ignore_layer` and the lookup of fused mixture-of-experts
layers in vLLM 0.32 (`model_executor/layers/quantization/compressed_tensors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from runbook.steps.checkpoint.patterns import Patterns

PROBES = ("gate_proj", "up_proj", "down_proj")
"""The names, below expert 0, under which vLLM looks up the scheme of a layer's experts."""
NATIVE = "fp8"
"""The quant_method of DeepSeek's own releases."""
MODELOPT = frozenset({"modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8"})


@dataclass(frozen=True)
class Scheme:
    """One config group: how weights are stored, and the targets it is for."""

    name: str
    targets: tuple[str, ...]
    format: str
    weights: Mapping[str, Any]

    @property
    def stored(self) -> str:
        """`int4`, `fp8`, `nvfp4`, `mxfp4` or a description of something else."""
        bits, kind = self.weights.get("num_bits"), self.weights.get("type")
        if bits == 4 and kind == "int":
            return "int4"
        if bits == 8 and kind == "float":
            return "fp8"
        if bits == 4 and kind == "float":
            return "mxfp4" if self.group_size == 32 else "nvfp4"
        return f"{kind}{bits}"

    @property
    def group_size(self) -> int | None:
        size = self.weights.get("group_size")
        return size if type(size) is int and size > 0 else None

    @cached_property
    def patterns(self) -> Patterns:
        return Patterns(self.targets)


class Quantization:
    """The config groups and the ignore list of a checkpoint; `config` may hold anything."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.method = str(config.get("quant_method") or "")
        self.schemes = [
            Scheme(
                name,
                strings(group.get("targets")),
                str(group.get("format") or config.get("format") or ""),
                mapping(group.get("weights")),
            )
            for name, group in mapping(config.get("config_groups")).items()
            if isinstance(group, dict)
        ]
        self.ignore = strings(config.get("ignore"))
        sizes = [s.group_size for s in self.schemes if s.stored == "int4"]
        self.int4_group = next((size for size in sizes if size), None)
        self.moe_algorithm = str(config.get("moe_quant_algo") or "").upper()
        self.algorithm = self.moe_algorithm or str(config.get("quant_algo") or "").upper()
        """What ModelOpt makes of all modules, if no list says otherwise."""
        self.layers: Mapping[str, str] = {
            name: str(mapping(entry).get("quant_algo") or "").upper()
            for name, entry in mapping(config.get("quantized_layers")).items()
        }
        """What `quantized_layers` says of modules, by their name."""

    @property
    def compressed_tensors(self) -> bool:
        return self.method == "compressed-tensors"

    @property
    def modelopt(self) -> bool:
        """Whether modules are quantised as ModelOpt says it."""
        return self.method in MODELOPT or bool(self.moe_algorithm or self.layers)

    @cached_property
    def ignored_names(self) -> Patterns:
        return Patterns.of_globs(self.ignore) if self.modelopt else Patterns(self.ignore)

    def ignored(self, names: Sequence[str]) -> bool:
        """Whether all of these modules are on the ignore list."""
        return all(self.ignored_names.match(name) for name in names)

    def linear(self, name: str, parts: Sequence[str] = ()) -> Scheme | None:
        """The scheme of a linear that vLLM builds as `name`, fused from `parts` if there are."""
        if self.ignored([name]) or (parts and self.ignored(parts)):
            return None
        if scheme := self.direct(name):
            return scheme
        if parts:
            found = [self.direct(part) for part in parts]
            if all(found):
                return found[0]
        return self._by_class()

    def direct(self, name: str) -> Scheme | None:
        """The scheme whose targets match this name itself."""
        return next((s for s in self.schemes if s.patterns.match(name)), None)

    def experts(self, prefix: str) -> Scheme | None:
        """The scheme of the experts below `prefix` (`....experts`)."""
        names = [f"{prefix}.0.{probe}" for probe in PROBES]
        if self.ignored(names):
            return None
        found = [self.direct(name) for name in names]
        if all(found):
            return found[0]
        return self._by_class()

    def _by_class(self) -> Scheme | None:
        return next((s for s in self.schemes if "Linear" in s.targets), None)


def of_modelopt(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """hf_quant_config.json, which ModelOpt writes beside a config.json without
    `quantization_config`, in the form of the latter."""
    found = mapping(document.get("quantization"))
    if not found:
        return {}
    return {**found, "quant_method": "modelopt", "ignore": found.get("exclude_modules")}


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def strings(value: Any) -> tuple[str, ...]:
    """The texts of a list; of anything else, none."""
    return tuple(x for x in value if isinstance(x, str)) if isinstance(value, list) else ()
