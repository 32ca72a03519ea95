"""What the checks look at, and what they find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from runbook.steps.checkpoint.checkpoint import Checkpoint
from runbook.steps.checkpoint.headers import Tensor
from runbook.steps.checkpoint.layout import Layout, Linear
from runbook.steps.checkpoint.quantization import Quantization

SCALES = (".weight_scale", ".scale", ".weight_scale_inv")
PACKED = (".weight_packed", ".weight_scale", ".weight_shape")
GLOBAL_SCALES = (".weight_scale_2", ".weight_global_scale")
"""The second scale of NVFP4, one number a weight, as ModelOpt and compressed-tensors name it."""
INPUT_SCALES = (".input_scale", ".input_global_scale")
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
PAIRS = frozenset({"I8", "U8", "F4"})
"""Dtypes of two 4-bit floats in a byte."""

Stored = Literal["int4", "fp8", "mxfp4", "nvfp4", "plain", "other", "absent"]
QUANTISED: frozenset[Stored] = frozenset({"int4", "fp8", "mxfp4", "nvfp4"})


@dataclass(frozen=True)
class Fault:
    """One occurrence of a rule: the tensors (or files, or targets) it is about."""

    id: str
    detail: str
    tensors: tuple[str, ...] = ()


@dataclass
class Subject:
    """A checkpoint, the layout its config asks for, and its quantisation."""

    checkpoint: Checkpoint
    layout: Layout | None
    quantization: Quantization
    problem: Fault | None = None

    def tensor(self, name: str) -> Tensor | None:
        return self.checkpoint.tensors.get(name)

    def stored(self, linear: Linear) -> Stored:
        """How a linear's weight is stored."""
        packed = self.tensor(linear.base + ".weight_packed")
        if packed is not None:
            return self._fp4(linear) if packed.dtype in PAIRS else "int4"
        weight = self.tensor(linear.base + ".weight")
        if weight is None:
            return "absent"
        if weight.dtype == "F8_E4M3":
            return "fp8"
        if weight.dtype in FLOATS:
            return "plain"
        return self._fp4(linear) if weight.dtype in PAIRS else "other"

    def _fp4(self, linear: Linear) -> Stored:
        scale = self.scale(linear)
        second = self.first(linear, GLOBAL_SCALES)
        nvfp4 = second is not None or (scale is not None and scale.dtype == "F8_E4M3")
        return "nvfp4" if nvfp4 else "mxfp4"

    def scale(self, linear: Linear) -> Tensor | None:
        """The scale of a linear, by whichever name."""
        return self.first(linear, SCALES)

    def first(self, linear: Linear, suffixes: Iterable[str]) -> Tensor | None:
        find, base = self.checkpoint.tensors.get, linear.base
        for suffix in suffixes:  # of a hundred thousand linears: no generator
            if (tensor := find(base + suffix)) is not None:
                return tensor
        return None

    @cached_property
    def layers_named(self) -> frozenset[str]:
        """The prefixes of the layers of which the index names a tensor."""
        layout = self.layout
        return frozenset(layout.layer(n) for n in self.checkpoint.index) if layout else frozenset()

    def mtp_blocks(self) -> list[str]:
        """The prefixes of the MTP blocks of which the index names at least one tensor."""
        assert self.layout is not None
        return [p for p in self.layout.mtp_prefixes if p in self.layers_named]


def fault(rule: str, detail: str, tensors: Iterable[str]) -> Iterable[Fault]:
    """One fault if there are any tensors, none otherwise. `{n}` in `detail` is their number."""
    names = tuple(tensors)
    if names:
        yield Fault(rule, detail.replace("{n}", str(len(names))), names)
