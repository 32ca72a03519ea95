"""A look at the values of scales: all of a small checkpoint, a sample of a large one.

Values are told by their bits, so that a chunk is looked at without a loop over it: each of its
different bit patterns is classed once.
"""

from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from runbook.steps.checkpoint.headers import Tensor
from runbook.steps.checkpoint.layout import Layout, Linear
from runbook.steps.checkpoint.lint.subject import (
    GLOBAL_SCALES,
    INPUT_SCALES,
    QUANTISED,
    SCALES,
    Fault,
    Stored,
    Subject,
    fault,
)

BUDGET = 32 << 20
"""Bytes that are read of a checkpoint's scales."""
MOST_TENSORS = 4096
"""Tensors that are read of: a read may cost a seek."""

# Words of a dtype: array's code, bits of sign, exponent and the whole number that is 1.0.
_WORDS = {
    "F8_E4M3": ("B", 0x80, 0x7F, 0x38),
    "F16": ("H", 0x8000, 0x7C00, 0x3C00),
    "BF16": ("H", 0x8000, 0x7F80, 0x3F80),
    "F32": ("I", 0x8000_0000, 0x7F80_0000, 0x3F80_0000),
    "F64": ("Q", 1 << 63, 0x7FF << 52, 0x3FF << 52),
}
_EXPONENTS = ("F8_E8M0", "U8")
_ONE = 127
"""The exponent byte that stands for 2^0; 255 is not a number."""


@dataclass
class Sample:
    """What was read: of `of` tensors of scales those of `tensors`, `read` of `bytes` bytes."""

    of: int = 0
    tensors: int = 0
    bytes: int = 0
    read: int = 0

    def __str__(self) -> str:
        if not self.tensors:
            return f"no value of the {self.of} scales was looked at"
        share = self.read / self.bytes if self.bytes else 1.0
        return f"{self.tensors} of {self.of} scales were looked at, {share:.2%} of their bytes"


@dataclass(frozen=True)
class _Scale:
    tensor: Tensor
    stored: Stored
    mtp: bool


def check(about: Subject, layout: Layout, sample: Sample) -> Iterator[Fault]:
    """Faults of what is read, which `sample` is told. Nothing is read of what is not at hand."""
    scales = [s for linear in layout.linears.values() for s in _scales(about, linear)]
    sample.of, sample.bytes = len(scales), sum(s.tensor.nbytes for s in scales)
    if not about.checkpoint.local:
        return
    found: dict[str, list[str]] = defaultdict(list)
    for scale, most, skip in _chosen(scales, sample.bytes):
        raw = about.checkpoint.read(scale.tensor, most, skip)
        if raw is None:
            continue
        sample.tensors += 1
        sample.read += len(raw)
        for rule in _faults(scale, raw):
            found[rule].append(scale.tensor.name)
    details = {
        "scale_range": "{n} scales have impossible values",
        "scale_zero": "{n} scales have zeros",
        "scale_negative": "{n} scales of INT4 weights have negative values",
    }
    for rule, names in found.items():
        yield from fault(rule, f"{details[rule]} ({sample})", names)


def _scales(about: Subject, linear: Linear) -> Iterator[_Scale]:
    stored = about.stored(linear)
    if stored not in QUANTISED:
        return
    for suffixes in (SCALES, GLOBAL_SCALES, INPUT_SCALES):
        tensor = about.first(linear, suffixes)
        if tensor is not None and (tensor.dtype in _WORDS or tensor.dtype in _EXPONENTS):
            yield _Scale(tensor, stored, linear.mtp)


def _chosen(scales: list[_Scale], total: int) -> Iterator[tuple[_Scale, int, int]]:
    """Scales to read, with the most bytes of each and those to skip: the draft's first, which few
    look at, then the others evenly."""
    ordered = sorted(scales, key=lambda s: not s.mtp)
    step = max(1, -(-len(ordered) // MOST_TENSORS))
    taken = ordered[::step]
    size = sum(s.tensor.nbytes for s in taken)
    for position, scale in enumerate(taken):
        nbytes = scale.tensor.nbytes
        most = nbytes if size <= BUDGET else max(64, nbytes * BUDGET // size // 8 * 8)
        room = max(0, nbytes - most)
        yield scale, most, room * (position % 16) // 15 // 8 * 8


def _faults(scale: _Scale, raw: bytes) -> Iterator[str]:
    """The rules that the values of a chunk break."""
    dtype = scale.tensor.dtype
    if dtype in _EXPONENTS:
        highest = max(raw, default=0)
        if highest == 255 or (scale.mtp and scale.stored == "fp8" and highest >= _ONE):
            yield "scale_range"
        return
    code, sign, exponent, one = _WORDS[dtype]
    words = array(code)
    words.frombytes(raw[: len(raw) // words.itemsize * words.itemsize])
    if sys.byteorder == "big":
        words.byteswap()
    values = set(words)
    sizes = {word & ~sign for word in values}
    odd = any(size >= exponent for size in sizes)
    if scale.stored == "fp8" and scale.mtp:  # exponent bytes that became numbers are at least 1
        odd = odd or 0 in sizes or any(size >= one for size in sizes)
    negative = any(word & sign and word != sign for word in values)
    if odd or (negative and scale.stored != "int4"):
        yield "scale_range"
    elif negative:
        yield "scale_negative"
    elif 0 in sizes:
        yield "scale_zero"
