"""How vLLM reads `quantization_config` of the method compressed-tensors.

Follows `find_matched_target`, `should_ignore_layer` and the lookup of fused mixture-of-experts
layers in vLLM 0.32 (`model_executor/layers/quantization/compressed_tensors`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

PROBES = ("gate_proj", "up_proj", "down_proj")
"""The names, below expert 0, under which vLLM looks up the scheme of a layer's experts."""


@dataclass(frozen=True)
class Scheme:
    """One config group: how weights are stored, and the targets it is for."""

    name: str
    targets: tuple[str, ...]
    format: str
    weights: Mapping[str, Any]

    @property
    def stored(self) -> str:
        """`int4`, `fp8` or a description of something else."""
        bits, kind = self.weights.get("num_bits"), self.weights.get("type")
        if bits == 4 and kind == "int":
            return "int4"
        if bits == 8 and kind == "float":
            return "fp8"
        return f"{kind}{bits}"

    @property
    def group_size(self) -> int | None:
        size = self.weights.get("group_size")
        return size if isinstance(size, int) and size > 0 else None

    @property
    def block(self) -> tuple[int, int] | None:
        shape = self.weights.get("block_structure")
        if isinstance(shape, list) and len(shape) == 2:
            return int(shape[0]), int(shape[1])
        return None


class Quantization:
    """The config groups and the ignore list of a checkpoint."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.method = str(config.get("quant_method", ""))
        groups = config.get("config_groups")
        self.schemes = [
            Scheme(
                name,
                tuple(group.get("targets") or ()),
                str(group.get("format") or config.get("format") or ""),
                group.get("weights") or {},
            )
            for name, group in (groups.items() if isinstance(groups, dict) else ())
            if isinstance(group, dict)
        ]
        self.ignore: tuple[str, ...] = tuple(config.get("ignore") or ())
        sizes = [s.group_size for s in self.schemes if s.stored == "int4"]
        self.int4_group = next((size for size in sizes if size), None)

    @property
    def compressed_tensors(self) -> bool:
        return self.method == "compressed-tensors"

    def ignored(self, names: Sequence[str]) -> bool:
        """Whether all of these modules are on the ignore list."""
        return all(matched(name, self.ignore) for name in names)

    def linear(self, name: str, parts: Sequence[str] = ()) -> Scheme | None:
        """The scheme of a linear that vLLM builds as `name`, fused from `parts` if there are."""
        if matched(name, self.ignore) or (parts and self.ignored(parts)):
            return None
        for scheme in self.schemes:
            if matched(name, scheme.targets):
                return scheme
        if parts:
            found = [self.direct(part) for part in parts]
            if all(found):
                return found[0]
        return self._by_class()

    def direct(self, name: str) -> Scheme | None:
        """The scheme whose targets match this name itself."""
        return next((s for s in self.schemes if matched(name, s.targets)), None)

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


def matched(name: str, targets: Iterable[str]) -> bool:
    return any(_match(name, target) for target in targets)


@lru_cache(maxsize=200_000)
def _match(name: str, target: str) -> bool:
    if not target.startswith("re:"):
        return name == target
    pattern = _compile(target[3:])
    return pattern is not None and pattern.match(name) is not None


@lru_cache(maxsize=10_000)
def _compile(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None
