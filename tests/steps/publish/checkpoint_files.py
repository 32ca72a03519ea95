"""Reads checkpoints by the letter of their formats, in another way than they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F32": "<f4",
    "I32": "<i4",
    "I64": "<i8",
    "I8": "i1",
}


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    entries, data = header(path)
    entries.pop("__metadata__")
    found = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        values = np.frombuffer(data[start:end], DTYPES[entry["dtype"]])
        found[name] = values.reshape(entry["shape"])
    return found


def tensors(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(tensors_of(path))
    return found


def int4(found: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The weight of which `name`.weight_packed and its companions are the stored form."""
    packed = found[f"{name}.weight_packed"].astype(np.int64) & 0xFFFFFFFF
    rows, columns = found[f"{name}.weight_shape"]
    values = np.empty((rows, columns), np.float32)
    for place in range(8):
        values[:, place::8] = (packed >> 4 * place & 15) - 8
    scale = found[f"{name}.weight_scale"].astype(np.float32)
    return values * np.repeat(scale, columns // scale.shape[1], 1)


def fp8(found: dict[str, np.ndarray], name: str, scale: str = "weight_scale") -> np.ndarray:
    """The weight that is stored as `name`.weight with one scale per 128 x 128 square."""
    scales = found[f"{name}.{scale}"].astype(np.float32)
    square = np.ones((128, 128), np.float32)
    return found[f"{name}.weight"].astype(np.float32) * np.kron(scales, square)


def fp4(found: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The weight that is stored as two E2M1 values a byte, one E8M0 scale per 32 columns."""
    stored = found[f"{name}.weight"].view(np.uint8)
    values = np.empty((stored.shape[0], stored.shape[1] * 2), np.float32)
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table = np.array(magnitudes + [-m for m in magnitudes], np.float32)
    values[:, 0::2] = table[stored & 15]
    values[:, 1::2] = table[stored >> 4]
    return values * np.repeat(found[f"{name}.scale"].astype(np.float32), 32, 1)
