"""What a layout consists of, and how one is put together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from runbook.steps.checkpoint.layout.fields import ConfigError

Role = Literal[
    "attention", "compressor", "indexer", "indexer_weights", "expert", "shared", "dense", "joint"
]
Kind = Literal["f32", "float", "int"]
Fused = tuple[str, tuple[str, ...]]
_LAYER = re.compile(r"(model\.layers\.\d+\.|layers\.\d+\.|mtp\.\d+\.)")


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight that may be stored quantised. `base` is its name without `.weight`."""

    base: str
    shape: tuple[int, int]
    role: Role
    mtp: bool


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that is stored as it is; `f32` marks those whose precision matters."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    mtp: bool


@dataclass
class Layout:
    """What a complete checkpoint of one model holds.

    `draft` is the kind of its draft head, `mtp_prefixes` are those of its MTP blocks or DSpark
    stages; `aliases` maps a block's own copies of embedding and head, which may be absent, to the
    tensors they copy. `optional` tensors may be absent too. `fused` names the linears that vLLM
    joins: (fused leaf, leaves), by the role of the parts.
    """

    family: str
    draft: Literal["mtp", "dspark"] = "mtp"
    layers: int = 0
    linears: dict[str, Linear] = field(default_factory=dict)
    plains: dict[str, Plain] = field(default_factory=dict)
    mtp_prefixes: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)
    fused: Mapping[Role, Fused] = field(default_factory=dict)

    def vllm_name(self, base: str) -> str:
        """The prefix under which vLLM builds the module of this weight."""
        if self.family == "deepseek_v3":
            return base
        block = re.match(r"mtp\.(\d+)\.", base)
        if block:
            layer = self.layers + int(block[1])
            return f"model.layers.{layer}.{base[block.end() :]}"
        return f"model.{base}"

    def layer(self, name: str) -> str:
        """The prefix of the layer that a tensor belongs to, or an empty string."""
        found = _LAYER.match(name)
        return found[0] if found else ""


@dataclass
class Builder:
    """Adds tensors below a prefix; raises `ConfigError` beyond `limit` tensors in all."""

    into: Layout
    prefix: str
    mtp: bool
    limit: int

    def below(self, prefix: str, mtp: bool = False) -> Builder:
        return Builder(self.into, prefix, mtp, self.limit)

    def linear(self, name: str, out: int, columns: int, role: Role) -> None:
        base = self.prefix + name
        self._count()
        self.into.linears[base] = Linear(base, (out, columns), role, self.mtp)

    def plain(self, name: str, *shape: int, kind: Kind = "float") -> None:
        full = self.prefix + name
        self._count()
        self.into.plains[full] = Plain(full, shape, kind, self.mtp)

    def swiglu(
        self, name: str, leaves: tuple[str, str, str], hidden: int, inter: int, role: Role
    ) -> None:
        """Gate, up and down projection."""
        gate, up, down = leaves
        self.linear(f"{name}.{gate}", inter, hidden, role)
        self.linear(f"{name}.{up}", inter, hidden, role)
        self.linear(f"{name}.{down}", hidden, inter, role)

    def _count(self) -> None:
        if len(self.into.linears) + len(self.into.plains) >= self.limit:
            raise ConfigError(
                f"it counts layers and experts with more than {self.limit} tensors, far more than "
                "there are"
            )
