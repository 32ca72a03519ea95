"""Headers of safetensors files, read with the standard library alone.

A file is an 8-byte little-endian length N, N bytes of JSON (`name: {dtype, shape, data_offsets}`,
plus `__metadata__`), and the data, to which the offsets are relative. Tensors must cover the data
without holes (https://github.com/huggingface/safetensors#format). What the library (0.8.0) refuses
is refused here, and duplicate keys besides, which the format forbids and the library lets pass.
"""

from __future__ import annotations

import gc
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
"""The limit that the safetensors library itself sets."""
MAX_DEPTH = 127
"""Levels of nesting that its JSON parser (serde_json) takes."""
MAX_INT = (1 << 64) - 1
_DIGITS = bytes.maketrans(b"123456789", b"000000000")

ITEM_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of a value by dtype: all that safetensors 0.8.0 knows."""

Read = Callable[[int, int], bytes]
"""`read(offset, length)`; may return fewer bytes at the end of the file."""


class HeaderError(ValueError):
    """The file does not begin with a valid safetensors header."""


class Tensor(NamedTuple):
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
        """What dtype and shape ask for; None if that is no whole number of bytes."""
        bits = math.prod(self.shape) * ITEM_BITS[self.dtype]
        return None if bits % 8 else bits // 8


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

    def contradictions(self) -> Iterator[str]:
        """The names of tensors whose offsets leave a hole, overlap, or differ from what dtype and
        shape ask for."""
        at = self.data_begin
        for tensor in self.tensors:
            if tensor.begin != at or tensor.expected_nbytes != tensor.nbytes:
                yield tensor.name
            at = tensor.end


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look again and again at the objects of a large
    header and take longer than reading it."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


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
    data = LENGTH_BYTES + length
    try:
        with uncollected():
            entries = _entries(raw)
            metadata = _metadata(entries.pop("__metadata__", None))
            tensors = [_tensor(name, shard, entry, data) for name, entry in entries.items()]
    except RecursionError:
        raise HeaderError("the header is nested too deeply") from None
    except ValueError as error:
        raise HeaderError(f"the header is not valid: {error}") from error
    tensors.sort(key=lambda t: (t.begin, t.end))
    return Header(tuple(tensors), metadata, data)


def _entries(raw: bytes) -> dict[str, Any]:
    """The JSON object, by the rules of serde_json. Raises ValueError or RecursionError."""
    # Called for each integer only where one could be other than Python reads it.
    odd = b"-0" in raw or b"0" * 21 in raw.translate(_DIGITS)
    found = json.loads(
        raw.decode("utf-8"),
        object_pairs_hook=_object,
        parse_int=_integer if odd else None,
        parse_float=_real,
        parse_constant=_constant,
    )
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    if b"\\u" in raw:
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{_shown(twice)} is there twice")
    return made


def _integer(text: str) -> int | float:
    if text == "-0" or len(text) > 20:
        return _real(text)
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(type(text) is str for text in value.values()):
        raise ValueError("__metadata__ must map texts to texts")
    return value


def _tensor(name: str, shard: str, entry: Any, data: int) -> Tensor:
    if not isinstance(entry, dict):
        raise ValueError(f"{_shown(name)} is no JSON object")
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except KeyError as missing:
        raise ValueError(f"{_shown(name)} has no {missing.args[0]}") from None
    if type(dtype) is not str or dtype not in ITEM_BITS:
        raise ValueError(
            f"{_shown(name)} has the dtype {_shown(dtype)}, which safetensors does not know"
        )
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{_shown(name)} has the offsets {_shown(offsets)}")
    begin, end = offsets
    if not (type(begin) is type(end) is int and 0 <= begin <= end <= MAX_INT):
        raise ValueError(f"{_shown(name)} has the offsets {_shown(offsets)}")
    if not isinstance(shape, list):
        raise ValueError(f"{_shown(name)} has the shape {_shown(shape)}")
    product = 1
    for size in shape:  # in this order: a zero first keeps the library from an overflow
        if type(size) is not int or not 0 <= size <= MAX_INT:
            raise ValueError(f"{_shown(name)} has the shape {_shown(shape)}")
        product *= size
        if product > MAX_INT:
            raise ValueError(f"{_shown(name)} has the shape {_shown(shape)}, which overflows")
    if product * ITEM_BITS[dtype] > MAX_INT:
        raise ValueError(f"{_shown(name)} has the shape {_shown(shape)}, which overflows")
    if len(entry) > 3 and _depth(entry) > MAX_DEPTH - 1:
        raise ValueError(f"{_shown(name)} is nested too deeply")
    return Tensor(name, shard, dtype, tuple(shape), data + begin, data + end)


def _shown(value: Any) -> str:
    text = repr(value[:60] if isinstance(value, (list, str)) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _depth(value: Any) -> int:
    """Levels of nesting, without recursion."""
    deepest, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        deepest += 1
        level = [w for v in level for w in (v.values() if isinstance(v, dict) else v)]
    return deepest


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
