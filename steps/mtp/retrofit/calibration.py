"""What was captured of an MTP block's experts: their tokens, or the moments of their inputs.

A folder with `calibration.json` and, by `kind`,
tokens: `tokens-*.safetensors` with `x` [n, d] BF16, `experts` [n, k] I32, `weights` [n, k] F32;
moments: `moments-E.safetensors` for each expert E with `in.second` [0.5625 d^2] and `out.second`
[0.5625 f^2] F32 (`hessian.PackedMoments`), the held-out rows `in.held` [h, d] and `out.held` [h, f]
BF16 and, in the metadata, `count`, `in.fourth` and `out.fourth`.
`in` is the input of the gate and up projections, `out` that of the down projection.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .hessian import GPU_STEP, Moments, PackedMoments, packed_length, unpacked
from .source import InputError

HELD_SHARE = 16
"""One of so many rows of an expert is held out to measure errors on ..."""
HELD_MOST = 256
"""... or one of twice, four times as many and so on, until they are at most so many."""
PART = 32768
"""Rows that pass through an expert at a time: about 1 GiB of intermediate values."""


@dataclass
class Inputs:
    """One expert's inputs: moments of both projections' inputs, and held-out rows (may be 0)."""

    into: Moments
    out: Moments
    held: Tensor
    held_out: Tensor

    def check(self, name: str) -> None:
        """Raises `InputError`, naming the expert by a weight of it, unless all is finite."""
        try:
            self.into.check()
            self.out.check()
            if not all(torch.isfinite(rows).all() for rows in (self.held, self.held_out)):
                raise ValueError("they hold NaN or infinity")
        except ValueError as error:
            raise InputError(f"the captured inputs of {name}: {error}") from error


def activate(gate: Tensor, up: Tensor, routing: Tensor, limit: float | None) -> Tensor:
    """The input of the down projection, BF16: silu(gate) * up * routing weight, both clamped as
    the model does if it has a limit. gate, up [n, f]; routing [n]."""
    gate, up = gate.float(), up.float()
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (torch.nn.functional.silu(gate) * up * routing.unsqueeze(1)).to(torch.bfloat16)


def joined(gate: Tensor, up: Tensor) -> Tensor:
    """The gate and up projections as one [d, 2 f], in FP32 on a CPU."""
    joint = torch.cat([gate, up]).t()
    return joint.float() if joint.device.type == "cpu" else joint


def hidden(x: Tensor, joint: Tensor, routing: Tensor, limit: float | None) -> Tensor:
    """The input of the down projection [n, f] for x [n, d]; `joint` is of `joined`."""
    rows = x.to(joint.dtype)
    if x.is_cuda and (short := -len(x) % GPU_STEP):
        rows = torch.nn.functional.pad(rows, (0, 0, 0, short))
    gate, up = (rows @ joint)[: len(x)].chunk(2, 1)
    return activate(gate, up, routing, limit)


def held_stride(count: int) -> int:
    """Of `count` rows of an expert, those at the multiples of this (from 1) are held out."""
    stride = HELD_SHARE
    while count // stride > HELD_MOST:
        stride *= 2
    return stride


class Calibration:
    """A folder of captures, opened, or none. `inputs` gives what quantising one expert needs."""

    about: dict[str, Any]

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        self.device = device
        if folder is None:
            self.kind = "none"
            self.about = {"kind": "none"}
            return
        self.folder = folder
        try:
            self.about = json.loads((folder / "calibration.json").read_text())
            self.kind = self.about["kind"]
            self.experts = int(self.about["experts"])
            self.limit = self.about.get("limit")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} holds no calibration: {error}") from error
        if self.kind == "tokens":
            self._load_tokens()
        elif self.kind != "moments":
            raise InputError(f"{folder}: kind {self.kind!r} is not known")

    def _load_tokens(self) -> None:
        parts: dict[str, list[Tensor]] = {"x": [], "experts": [], "weights": []}
        for path in sorted(self.folder.glob("tokens-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    for name, into in parts.items():
                        into.append(file.get_tensor(name).to(self.device))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} cannot be read: {error}") from error
        if not parts["x"]:
            raise InputError(f"{self.folder} holds no tokens-*.safetensors")
        self.x = _joined(parts["x"])
        experts, weights = _joined(parts["experts"]), _joined(parts["weights"])
        if len(experts) != len(self.x) or experts.shape != weights.shape:
            raise InputError(
                f"{self.folder}: x {tuple(self.x.shape)}, experts {tuple(experts.shape)} and "
                f"weights {tuple(weights.shape)} do not belong together"
            )
        # Grouped by expert, so that each expert takes one pass and not one a capture.
        slots = experts.shape[1]
        order = experts.flatten().argsort(stable=True)
        self.rows = order // slots
        self.routing = weights.flatten()[order]
        counts = torch.bincount(experts.flatten().long(), minlength=self.experts)
        self.bounds = [0, *counts.cumsum(0).tolist()]
        if len(self.bounds) - 1 > self.experts or int(experts.min()) < 0:
            raise InputError(f"{self.folder}: an expert number is out of range")

    def inputs(self, expert: int, weights: dict[str, Tensor]) -> Inputs:
        """Moments and held-out rows for the expert whose weights (gate, up, down) are given."""
        gate, up, down = weights.values()
        if self.kind == "none":
            empty = torch.zeros(0, gate.shape[1], dtype=torch.bfloat16, device=self.device)
            into = Moments.empty(gate.shape[1], self.device)
            out = Moments.empty(down.shape[1], self.device)
            return Inputs(into, out, empty, empty[:, : down.shape[1]])
        try:
            if self.kind == "moments":
                return self._stored(expert, gate.shape[1], down.shape[1])
            return self._counted(expert, gate, up)
        except ValueError as error:
            raise InputError(f"the captured inputs of {next(iter(weights))}: {error}") from error

    def _counted(self, expert: int, gate: Tensor, up: Tensor) -> Inputs:
        if self.x.shape[1] != gate.shape[1]:
            raise ValueError(f"x of {self.x.shape[1]} columns for {gate.shape[1]} inputs")
        begin = self.bounds[expert]
        count = self.bounds[expert + 1] - begin
        stride = held_stride(count)
        # The last of each `stride` slots is held out. Numbers made on the device: a mask, or
        # numbers brought there, would make it wait for the host.
        numbers = torch.arange(count, device=self.device)
        held = numbers[: count // stride] * stride + begin + stride - 1
        kept = numbers[: count - len(held)]
        kept = kept + kept // (stride - 1) + begin
        into = Moments.empty(gate.shape[1], self.device)
        out = Moments.empty(gate.shape[0], self.device)
        joint = joined(gate, up)
        for part in kept.split(PART):
            x, y = self._pass(part, joint)
            into.add(x)
            out.add(y)
        return Inputs(into, out, *self._pass(held, joint))

    def _pass(self, slots: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the gate and up projections and of the down projection for some of the
        grouped slots; `joint` [d, 2 f] are the two projections."""
        x = self.x[self.rows[slots]]
        return x, hidden(x, joint, self.routing[slots], self.limit)

    def counts(self) -> list[int] | None:
        """How many rows each expert got, but for those held out of moments; None without a
        calibration. Raises `InputError`."""
        if self.kind == "none":
            return None
        if self.kind == "tokens":
            return [b - a for a, b in itertools.pairwise(self.bounds)]
        return [int(self._open(e)[1]["count"]) for e in range(self.experts)]

    def _open(self, expert: int) -> tuple[Any, dict[str, str]]:
        path = self.folder / f"moments-{expert}.safetensors"
        try:
            file = safe_open(path, "pt")
            about: dict[str, str] = file.metadata() or {}
            if not {"count", "in.fourth", "out.fourth"} <= about.keys():
                raise InputError(f"{path} does not say how many rows it is of")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return file, about

    def _stored(self, expert: int, width: int, inter: int) -> Inputs:
        file, about = self._open(expert)
        made: list[Moments] = []
        held: list[Tensor] = []
        for side, size in (("in", width), ("out", inter)):
            try:
                second = file.get_tensor(f"{side}.second").to(self.device)
                held.append(file.get_tensor(f"{side}.held").to(self.device))
            except SafetensorError as error:
                raise ValueError(str(error)) from error
            if second.shape != (packed_length(size),) or held[-1].shape[1:] != (size,):
                shapes = f"{tuple(second.shape)} and {tuple(held[-1].shape)}"
                raise ValueError(f"moments and rows of shapes {shapes} for {size} inputs")
            fourth = torch.tensor(float(about[f"{side}.fourth"]), dtype=torch.float64)
            made.append(Moments(unpacked(second, size), fourth, int(about["count"])))
        return Inputs(made[0], made[1], held[0], held[1])

    def digest(self) -> str:
        """Identifies the captures by their description and the sizes of their files."""
        found = [] if self.kind == "none" else self.folder.glob("*.safetensors")
        files = sorted((p.name, p.stat().st_size) for p in found)
        return hashlib.sha256(json.dumps([self.about, files], sort_keys=True).encode()).hexdigest()


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def save_moments(
    folder: Path,
    expert: int,
    into: PackedMoments,
    out: PackedMoments,
    held: Tensor,
    held_out: Tensor,
) -> None:
    """Write one expert's moments and held-out rows as `Calibration` reads them."""
    metadata = {
        "count": str(into.count),
        "in.fourth": repr(float(into.fourth)),
        "out.fourth": repr(float(out.fourth)),
    }
    path = folder / f"moments-{expert}.safetensors"
    temporary = path.with_name(path.name + ".tmp")
    tensors = {"in.second": into.second, "out.second": out.second}
    save_file({**tensors, "in.held": held, "out.held": held_out}, temporary, metadata)
    temporary.replace(path)
