"""Headers of safetensors files, read with the standard library alone.

A file is an 8-byte little-endian length N, N bytes of JSON (`name: {dtype, shape, data_offsets}`,
plus `__metadata__`), and the data, to which the offsets are relative. Tensors must cover the data
without holes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
"""The limit that the safetensors library itself sets."""

ITEM_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}

Read = Callable[[int, int], bytes]
"""`read(offset, length)`; may return fewer bytes at the end of the file."""


class HeaderError(ValueError):
    """The file does not begin with a valid safetensors header."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header. `begin` and `end` count bytes from the start of the file."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def expected_nbytes(self) -> int | None:
        """What dtype and shape ask for; None for a dtype unknown here."""
        bits = ITEM_BITS.get(self.dtype)
        return None if bits is None else math.prod(self.shape) * bits // 8


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: tensors in the order of their data, and where the data begins."""

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    data_begin: int

    @property
    def end(self) -> int:
        """The length the file must have, in bytes."""
        return max((t.end for t in self.tensors), default=self.data_begin)


def parse(read: Read, shard: str) -> Header:
    """The header of the file that `read` reads; `HeaderError` says what is wrong with it."""
    prefix = read(0, LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise HeaderError(f"{len(prefix)} bytes are no safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= MAX_HEADER:
        raise HeaderError(f"a header of {length} bytes is not plausible")
    raw = read(LENGTH_BYTES, length)
    if len(raw) < length:
        raise HeaderError(f"the file ends inside its header ({len(raw)} of {length} bytes)")
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        data = LENGTH_BYTES + length
        tensors = [_tensor(name, shard, entry, data) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeaderError(f"the header is not valid: {error}") from error
    tensors.sort(key=lambda t: (t.begin, t.end))
    return Header(tuple(tensors), metadata, data)


def _tensor(name: str, shard: str, entry: Mapping[str, Any], data: int) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    if not 0 <= begin <= end:
        raise ValueError(f"{name} has offsets {begin}, {end}")
    return Tensor(name, shard, str(entry["dtype"]), shape, data + begin, data + end)


def render(
    tensors: list[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """The bytes before the data for tensors (name, dtype, shape, bytes) stored in this order.

    The JSON is padded with spaces to a multiple of 8, so that the data is aligned as the
    safetensors library aligns it.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape, nbytes in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw
