"""FP8 weights with block scales to BF16, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from runbook.steps.checkpoint.headers import Tensor

BLOCK = 128

SCALE_DTYPES: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U8": np.dtype(ml_dtypes.float8_e8m0fnu),  # exponent bytes that lost their dtype
}


def scales(raw: bytes, tensor: Tensor) -> NDArray[np.float32]:
    """The values of a scale tensor as FP32, in its shape."""
    values = np.frombuffer(raw, SCALE_DTYPES[tensor.dtype])
    return values.astype(np.float32).reshape(tensor.shape)


def rows(
    read: Callable[[int, int], bytes], weight: Tensor, scale: NDArray[np.float32]
) -> Iterator[bytes]:
    """The BF16 bytes of an F8_E4M3 weight [out, in] with one scale for 128 x 128 values.

    `read(offset, length)` reads the file of the weight. Yields 128 rows at a time: at most
    128 x in x 4 bytes are held. Rounds to nearest, ties to even.
    """
    out, columns = weight.shape
    if scale.shape != (math.ceil(out / BLOCK), math.ceil(columns / BLOCK)):
        raise ValueError(f"{weight.name}: scale {scale.shape} does not fit {weight.shape}")
    for block, first in enumerate(range(0, out, BLOCK)):
        count = min(BLOCK, out - first)
        raw = read(weight.begin + first * columns, count * columns)
        values = np.frombuffer(raw, ml_dtypes.float8_e4m3fn).astype(np.float32)
        values = values.reshape(count, columns)
        values *= np.repeat(scale[block], BLOCK)[:columns]
        yield values.astype(ml_dtypes.bfloat16).tobytes()
