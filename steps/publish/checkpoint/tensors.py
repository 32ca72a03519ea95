"""Numbers as a checkpoint stores them: seeded noise, INT4, FP8 and FP4 weights, safetensors files.

Formats: compressed-tensors 0.17 (`pack-quantized`, `float-quantized`), the DeepSeek-V4 release
(FP8 E4M3 and FP4 E2M1 with E8M0 scales), safetensors 0.x.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)

GROUP = 128
"""Input columns that share one scale of an INT4 weight."""
BLOCK = 128
"""Rows and columns of the square that shares one scale of an FP8 weight."""
FP4_GROUP = 32
E4M3_MAX = 448.0
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)

_LABELS = {
    BF16: "BF16",
    E4M3: "F8_E4M3",
    E8M0: "F8_E8M0",
    np.dtype("<f4"): "F32",
    np.dtype("<i4"): "I32",
    np.dtype("<i8"): "I64",
    np.dtype("i1"): "I8",
}


def noise(name: str, shape: tuple[int, ...], deviation: float) -> Array:
    """Uniform float32 noise of the given standard deviation, the same on every machine.

    It comes from the raw bits of PCG64, whose stream numpy keeps stable; the distributions of
    `numpy.random.Generator` carry no such promise.
    """
    count = int(np.prod(shape))
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(-(-count // 4))
    levels = np.asarray(raw, "<u8").view("<u2")[:count].astype(np.float32)
    centred: Array = (levels - np.float32(32767.5)) * np.float32(deviation / (65536 / 12**0.5))
    return centred.reshape(shape)


def int4(weight: Array) -> tuple[Array, Array]:
    """Symmetric INT4 with one bfloat16 scale for `GROUP` columns, rounded to nearest.

    Of an [out, in] weight gives int32 [out, in / 8], eight values to a word, the lowest four bits
    the lowest column, each stored with an offset of 8; and the scales, bfloat16 [out, in / GROUP].
    """
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // GROUP, GROUP)
    scale = (np.abs(groups).max(-1) / np.float32(7)).astype(BF16)
    steps = np.rint(groups / scale.astype(np.float32)[..., None])
    nibbles = (np.clip(steps, -8, 7).astype(np.int8) + 8).astype(np.uint8).reshape(rows, -1, 2)
    packed = (nibbles[..., 0] | nibbles[..., 1] << 4).astype(np.uint8)
    return np.ascontiguousarray(packed).view("<i4"), scale


def fp8(weight: Array) -> tuple[Array, Array]:
    """FP8 E4M3 with one scale for each `BLOCK` x `BLOCK` square.

    Of an [out, in] weight gives E4M3 [out, in] and the scales as float32
    [out / BLOCK, in / BLOCK], powers of two as in the DeepSeek releases.
    """
    rows, columns = weight.shape
    squares = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = _power_of_two(np.abs(squares).max((1, 3), keepdims=True) / np.float32(E4M3_MAX))
    stored = (squares / scale).astype(E4M3).reshape(rows, columns)
    return stored, scale.reshape(rows // BLOCK, columns // BLOCK)


def fp4(weight: Array) -> tuple[Array, Array]:
    """FP4 E2M1, two values to a byte, the lower four bits the lower column.

    Of an [out, in] weight gives int8 [out, in / 2] and the scales, E8M0 [out, in / FP4_GROUP].
    """
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // FP4_GROUP, FP4_GROUP)
    scale = _power_of_two(np.abs(groups).max(-1, keepdims=True) / E2M1[-1])
    levels = np.abs(np.abs(groups / scale)[..., None] - E2M1).argmin(-1).astype(np.uint8)
    nibbles = (levels | (groups < 0).astype(np.uint8) << 3).reshape(rows, columns // 2, 2)
    packed = (nibbles[..., 0] | nibbles[..., 1] << 4).astype(np.uint8)
    return packed.view(np.int8), scale[..., 0].astype(E8M0)


def _power_of_two(least: Array) -> Array:
    """The smallest powers of two that are not below `least`, all positive. Exact: no logarithm,
    whose last bit may differ between machines."""
    mantissa, exponent = np.frexp(least.astype(np.float32))
    power: Array = np.ldexp(np.float32(1), exponent - (mantissa == 0.5))
    return power.astype(np.float32)


def save(path: Path, tensors: Mapping[str, Array]) -> int:
    """Write one safetensors file and give the bytes of its tensors. Wide types come first, as
    the format's own writer puts them, so that every tensor is aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _LABELS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = (np.ascontiguousarray(tensors[name]).tobytes() for name in names)
    replace(path, b"".join((len(text).to_bytes(8, "little"), text, *parts)))
    return end


def replace(path: Path, content: bytes) -> None:
    """Put a file in place whole or not at all, also if the machine loses power."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def document(path: Path, content: object) -> None:
    """Write a JSON file that a person can read."""
    text = json.dumps(content, ensure_ascii=False, indent=2)
    replace(path, (text + "\n").encode())
