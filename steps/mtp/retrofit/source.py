"""The upstream weights of routed experts, read expert by expert from a checkpoint folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import formats

LEAVES = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))
"""Names of gate, up and down projection, by DeepSeek's and by Hugging Face's convention."""

CPU = torch.device("cpu")


class InputError(Exception):
    """Something about the inputs that the user can understand; names the file or tensor."""


@dataclass
class Experts:
    """The experts `prefix.0`, `prefix.1`, ... of one block."""

    folder: Path
    prefix: str
    index: dict[str, str]
    config: dict[str, Any]
    device: torch.device = CPU
    leaves: tuple[str, str, str] = LEAVES[0]
    count: int = 0
    _files: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, prefix: str, device: torch.device = CPU) -> Experts:
        """The experts, whose weights will be decoded on `device`. Raises `InputError` if the folder
        holds no such experts."""
        try:
            config = json.loads((folder / "config.json").read_text())
            path = folder / "model.safetensors.index.json"
            index = json.loads(path.read_text())["weight_map"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder} is no checkpoint with an index: {error}") from error
        numbers = {
            int(name[len(prefix) + 1 :].partition(".")[0])
            for name in index
            if name.startswith(prefix + ".") and name[len(prefix) + 1].isdigit()
        }
        if not numbers or numbers != set(range(len(numbers))):
            raise InputError(f"{folder} has no complete set of experts {prefix}.0 and so on")
        found = cls(folder, prefix, index, config, device, count=len(numbers))
        found.leaves = next((x for x in LEAVES if f"{prefix}.0.{x[0]}.weight" in index), LEAVES[0])
        return found

    def names(self, expert: int) -> tuple[str, str, str]:
        """The names of an expert's gate, up and down projection, without a suffix."""
        gate, up, down = (f"{self.prefix}.{expert}.{leaf}" for leaf in self.leaves)
        return gate, up, down

    def weights(self, expert: int) -> dict[str, Tensor]:
        """The expert's three weights in BF16, by name, and exactly where they are FP4."""
        found = {name: self._weight(name) for name in self.names(expert)}
        gate, up, down = found.values()
        if gate.shape != up.shape or down.shape != gate.shape[::-1]:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in found.items())
            raise InputError(f"the shapes of an expert do not fit together: {shapes}")
        return found

    def _weight(self, name: str) -> Tensor:
        weight = self.tensor(f"{name}.weight")
        if weight.is_floating_point() and weight.dtype != torch.float8_e4m3fn:
            made = weight.to(torch.bfloat16)
        else:
            scale = self.tensor(
                next(
                    (n for s in ("scale", "weight_scale_inv", "weight_scale")
                     if (n := f"{name}.{s}") in self.index),
                    f"{name}.scale",
                )
            )  # fmt: skip
            convert = formats.from_fp8 if weight.is_floating_point() else formats.from_fp4
            try:
                made = convert(weight, scale)
            except RuntimeError as error:
                shapes = f"{tuple(weight.shape)} and scale {tuple(scale.shape)}"
                raise InputError(f"{name}: weight {shapes} do not fit: {error}") from error
        if not torch.isfinite(made).all():
            raise InputError(f"{name}.weight holds NaN or infinity")
        return made

    def tensor(self, name: str) -> Tensor:
        """A tensor of the checkpoint by name. Raises `InputError`."""
        shard = self.index.get(name)
        if shard is None:
            raise InputError(f"{self.folder} has no tensor {name}")
        try:
            if shard not in self._files:
                self._files[shard] = safe_open(self.folder / shard, "pt")
            tensor: Tensor = self._files[shard].get_tensor(name).to(self.device)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{name} cannot be read from {self.folder / shard}: {error}"
            ) from error
        return tensor

    def digest(self) -> str:
        """Identifies the checkpoint by its config, its index and the sizes of its shards."""
        seen = hashlib.sha256()
        for part in self._identity():
            seen.update(part.encode() + b"\0")
        return seen.hexdigest()

    def _identity(self) -> Iterator[str]:
        yield json.dumps([self.config, self.index], sort_keys=True)
        for shard in sorted(set(self.index.values())):
            yield f"{shard} {(self.folder / shard).stat().st_size}"
