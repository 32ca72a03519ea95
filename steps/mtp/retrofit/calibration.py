"""What was captured of an MTP block's experts: their tokens, or the moments of their inputs.

A folder with `calibration.json` and, by `kind`,
tokens: `tokens-*.safetensors` with `x` [n, d] BF16, `experts` [n, k] I32, `weights` [n, k] F32;
moments: `moments-E.safetensors` for each expert E with `in.second` [d, d] and `out.second` [f, f]
F32 (lower triangles) and, in the metadata, `count`, `in.fourth` and `out.fourth`.
`in` is the input of the gate and up projections, `out` that of the down projection.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .hessian import GPU_STEP, Moments
from .source import Problem

HELD_SHARE = 16
"""One token in so many is held out to measure errors on ..."""
HELD_MOST = 256
"""... at most so many an expert."""
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
        """Raises `Problem`, naming the expert by a weight of it, unless all is finite."""
        try:
            self.into.check()
            self.out.check()
        except ValueError as error:
            raise Problem(f"the captured inputs of {name}: {error}") from error


def activate(gate: Tensor, up: Tensor, routing: Tensor, limit: float | None) -> Tensor:
    """The input of the down projection, BF16: silu(gate) * up * routing weight, both clamped as
    the model does if it has a limit. gate, up [n, f]; routing [n]."""
    gate, up = gate.float(), up.float()
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (torch.nn.functional.silu(gate) * up * routing.unsqueeze(1)).to(torch.bfloat16)


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
            self.limit = self.about.get("limit")
        except (OSError, ValueError, KeyError) as error:
            raise Problem(f"{folder} holds no calibration: {error}") from error
        if self.kind == "tokens":
            self._load_tokens()
        elif self.kind != "moments":
            raise Problem(f"{folder}: kind {self.kind!r} is not known")

    def _load_tokens(self) -> None:
        parts: dict[str, list[Tensor]] = {"x": [], "experts": [], "weights": []}
        for path in sorted(self.folder.glob("tokens-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    for name, into in parts.items():
                        into.append(file.get_tensor(name).to(self.device))
            except (SafetensorError, OSError) as error:
                raise Problem(f"{path} cannot be read: {error}") from error
        if not parts["x"]:
            raise Problem(f"{self.folder} holds no tokens-*.safetensors")
        self.x = _joined(parts["x"])
        experts, weights = _joined(parts["experts"]), _joined(parts["weights"])
        if len(experts) != len(self.x) or experts.shape != weights.shape:
            raise Problem(
                f"{self.folder}: x {tuple(self.x.shape)}, experts {tuple(experts.shape)} and "
                f"weights {tuple(weights.shape)} do not belong together"
            )
        # Grouped by expert, so that each expert takes one pass and not one a capture.
        slots = experts.shape[1]
        order = experts.flatten().argsort(stable=True)
        self.rows = order // slots
        self.routing = weights.flatten()[order]
        counts = torch.bincount(experts.flatten().long(), minlength=int(self.about["experts"]))
        self.bounds = [0, *counts.cumsum(0).tolist()]
        if len(self.bounds) - 1 > int(self.about["experts"]) or int(experts.min()) < 0:
            raise Problem(f"{self.folder}: an expert number is out of range")

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
            raise Problem(f"the captured inputs of {next(iter(weights))}: {error}") from error

    def _counted(self, expert: int, gate: Tensor, up: Tensor) -> Inputs:
        if self.x.shape[1] != gate.shape[1]:
            raise ValueError(f"x of {self.x.shape[1]} columns for {gate.shape[1]} inputs")
        begin, end = self.bounds[expert], self.bounds[expert + 1]
        count = end - begin
        held = min(HELD_MOST, count // HELD_SHARE)
        picked = torch.zeros(count, dtype=torch.bool)
        if held:
            picked[: held * (count // held) : count // held] = True
        into = Moments.empty(gate.shape[1], self.device)
        out = Moments.empty(gate.shape[0], self.device)
        joint = torch.cat([gate, up]).t()
        if self.device.type == "cpu":
            joint = joint.float()
        slots = torch.arange(begin, end)
        for part in slots[~picked].split(PART):
            x, hidden = self._pass(part, joint)
            into.add(x)
            out.add(hidden)
        return Inputs(into, out, *self._pass(slots[picked], joint))

    def _pass(self, slots: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the gate and up projections and of the down projection for some of the
        grouped slots; `joint` [d, 2 f] are the two projections."""
        slots = slots.to(self.device)
        x = self.x[self.rows[slots]]
        rows = x.to(joint.dtype)
        if x.is_cuda and (short := -len(x) % GPU_STEP):
            rows = torch.nn.functional.pad(rows, (0, 0, 0, short))
        gate, up = (rows @ joint)[: len(x)].chunk(2, 1)
        return x, activate(gate, up, self.routing[slots], self.limit)

    def _stored(self, expert: int, width: int, inter: int) -> Inputs:
        path = self.folder / f"moments-{expert}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                seconds = [file.get_tensor(n).to(self.device) for n in ("in.second", "out.second")]
        except (SafetensorError, OSError) as error:
            raise Problem(f"{path} cannot be read: {error}") from error
        for second, size in zip(seconds, (width, inter), strict=True):
            if second.shape != (size, size):
                raise ValueError(f"moments of shape {tuple(second.shape)} for {size} inputs")
        made = [
            Moments(
                second,
                torch.tensor(float(about[f"{side}.fourth"]), dtype=torch.float64),
                int(about["count"]),
            )
            for second, side in zip(seconds, ("in", "out"), strict=True)
        ]
        none = torch.zeros(0, width, dtype=torch.bfloat16, device=self.device)
        return Inputs(made[0], made[1], none, none[:, :inter])

    def digest(self) -> str:
        """Identifies the captures by their description and the sizes of their files."""
        found = [] if self.kind == "none" else self.folder.glob("*.safetensors")
        files = sorted((p.name, p.stat().st_size) for p in found)
        return hashlib.sha256(json.dumps([self.about, files], sort_keys=True).encode()).hexdigest()


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def save_moments(folder: Path, expert: int, into: Moments, out: Moments) -> None:
    """Write one expert's moments as `Calibration` reads them."""
    metadata = {
        "count": str(into.count),
        "in.fourth": repr(float(into.fourth)),
        "out.fourth": repr(float(out.fourth)),
    }
    path = folder / f"moments-{expert}.safetensors"
    temporary = path.with_name(path.name + ".tmp")
    tensors = {"in.second": into.second.cpu(), "out.second": out.second.cpu()}
    save_file(tensors, temporary, metadata)
    temporary.replace(path)
