"""Spoils checkpoints in ways that a server loads without a word."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from runbook.steps.publish.checkpoint.tensors import Array, save
from tests.steps.publish.checkpoint_files import tensors_of

Change = Callable[[Array], Array]


def reverse_nibbles(packed: Array) -> Array:
    """INT4 values in the other order within each word: what another packing convention gives."""
    octets = np.ascontiguousarray(packed).view(np.uint8).reshape(*packed.shape, 4)[..., ::-1]
    swapped = (octets >> 4 | octets << 4).astype(np.uint8)
    return np.ascontiguousarray(swapped).view("<i4").reshape(packed.shape)


def reverse_fp4(packed: Array) -> Array:
    """FP4 values in the other order within each byte."""
    octets = packed.view(np.uint8)
    return (octets >> 4 | octets << 4).astype(np.uint8).view(packed.dtype)


def shift(table: Array) -> Array:
    """Each row where the next one belongs."""
    return np.roll(table, 1, 0)


def zero(weight: Array) -> Array:
    return np.zeros_like(weight)


def configure(folder: Path, **fields: object) -> None:
    """Set fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def spoil(folder: Path, pattern: str, change: Change) -> int:
    """Change each tensor whose name contains all words of `pattern`; how many there were."""
    changed = 0
    for path in folder.glob("*.safetensors"):
        found: Mapping[str, Array] = tensors_of(path)
        chosen = [name for name in found if all(word in name for word in pattern.split())]
        if chosen:
            save(path, {**found, **{name: change(found[name]) for name in chosen}})
            changed += len(chosen)
    return changed
