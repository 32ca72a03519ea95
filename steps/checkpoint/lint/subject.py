"""What the checks look at, and what they find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from runbook.steps.checkpoint.checkpoint import Checkpoint
from runbook.steps.checkpoint.headers import Tensor
from runbook.steps.checkpoint.layout import Layout, Linear
from runbook.steps.checkpoint.quantization import Quantization

SCALES = (".weight_scale", ".scale", ".weight_scale_inv")
PACKED = (".weight_packed", ".weight_scale", ".weight_shape")
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})

Stored = Literal["int4", "fp8", "fp4", "plain", "other", "absent"]


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
        if self.tensor(linear.base + ".weight_packed"):
            return "int4"
        weight = self.tensor(linear.base + ".weight")
        if weight is None:
            return "absent"
        if weight.dtype == "F8_E4M3":
            return "fp8"
        if weight.dtype in FLOATS:
            return "plain"
        if weight.dtype in ("I8", "U8", "F4"):
            return "fp4"
        return "other"

    def scale(self, linear: Linear) -> Tensor | None:
        """The scale of a linear, by whichever name."""
        return next((t for s in SCALES if (t := self.tensor(linear.base + s))), None)

    def mtp_blocks(self) -> list[str]:
        """The prefixes of the MTP blocks of which the index names at least one tensor."""
        assert self.layout is not None
        names = self.checkpoint.index
        return [p for p in self.layout.mtp_prefixes if any(n.startswith(p) for n in names)]


def fault(rule: str, detail: str, tensors: Iterable[str]) -> Iterable[Fault]:
    """One fault if there are any tensors, none otherwise. `{n}` in `detail` is their number."""
    names = tuple(tensors)
    if names:
        yield Fault(rule, detail.format(n=len(names)), names)
