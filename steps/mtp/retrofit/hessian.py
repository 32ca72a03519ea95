"""Second moments of a linear's inputs: accumulated exactly, shrunk, factored.

GPTQ (Frantar et al. 2022, arXiv:2210.17323) minimises tr((W - Q) H (W - Q)^T) with H = X^T X / n.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 4096
"""Rows of X taken at a time on a CPU, where they are widened to FP32 first."""
GPU_ROWS = 1 << 16
GPU_STEP = 2048
PANELS = 8
GPU_PANELS = 4
"""H is computed in this many block rows, each up to the diagonal only: 0.56 (0.63) of the
products."""
TILE = 256
"""Columns of a block column of the factorisation."""
CPU = torch.device("cpu")


@dataclass
class Moments:
    """Sums over the rows x [d] of a calibration set: `second` of x x^T [d, d] FP32, `fourth` of
    |x|^4 (FP64 scalar), and their `count`. Sums of parts of the set add up. Only the lower
    triangle of `second` is kept."""

    second: Tensor
    fourth: Tensor
    count: int

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Moments:
        fourth = torch.zeros((), dtype=torch.float64, device=device)
        return cls(torch.zeros(width, width, device=device), fourth, 0)

    @property
    def width(self) -> int:
        """d"""
        return int(self.second.shape[0])

    def add(self, x: Tensor) -> None:
        """Add rows x [n, d], BF16 or FP32."""
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ValueError(f"rows of shape {tuple(x.shape)} for {self.width} inputs")
        for rows in x.split(ROWS if x.device.type == "cpu" else GPU_ROWS) if len(x) else ():
            wide = rows.float() if x.device.type == "cpu" else rows
            norms = torch.linalg.vector_norm(wide, dim=1, dtype=torch.float32)
            self.fourth += norms.double().pow(4).sum()
            self._triangle(rows, wide)
        self.count += x.shape[0]

    def check(self) -> None:
        """Raises `ValueError` if a row was not finite."""
        if not torch.isfinite(self.fourth):
            raise ValueError("they hold NaN or infinity")

    def _triangle(self, rows: Tensor, wide: Tensor) -> None:
        """Add the products of rows, given as they came and, on a CPU, as FP32."""
        if rows.dtype == torch.bfloat16 and rows.device.type == "cpu":
            with loose_products(rows.device):  # products of BF16 numbers: FP32 holds them
                self._multiply(wide)
        else:
            self._multiply(rows)

    def _multiply(self, rows: Tensor) -> None:
        exact = rows.dtype == torch.bfloat16
        if exact and (
            short := -len(rows) % GPU_STEP
        ):  # few different shapes: each is prepared for once
            rows = torch.nn.functional.pad(rows, (0, 0, 0, short))
        for into, panel, before in self._blocks():
            if exact:  # products of two BF16 numbers are exact in FP32: nothing is lost
                into += torch.mm(rows[:, panel].t(), rows[:, before], out_dtype=torch.float32)
            else:
                into.addmm_(rows[:, panel].t(), rows[:, before])

    def _blocks(self) -> Iterator[tuple[Tensor, slice, slice]]:
        """What is kept of `second`: each block with its rows and columns."""
        for rows, columns in panels(self.width, self.second.device):
            yield self.second[rows, columns], rows, columns

    def hessian(self) -> Tensor:
        """H = X^T X / n [d, d], symmetric."""
        h = self.second / max(1, self.count)
        for panel, _ in panels(self.width, h.device):
            h[: panel.start, panel] = h[panel, : panel.start].t()
        return h


@dataclass
class PackedMoments(Moments):
    """Moments whose `second` is a vector: the blocks of the lower triangle, one after the other,
    0.5625 d^2 numbers. For a CPU, and for a thread beside others: it leaves torch's precision, a
    setting of the whole process, as it is."""

    size: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> PackedMoments:
        second = torch.zeros(packed_length(width), dtype=torch.float32, device=device)
        return cls(second, torch.zeros((), dtype=torch.float64, device=device), 0, width)

    @property
    def width(self) -> int:
        return self.size

    def _triangle(self, rows: Tensor, wide: Tensor) -> None:
        self._multiply(wide)

    def _blocks(self) -> Iterator[tuple[Tensor, slice, slice]]:
        yield from packed_blocks(self.second, self.size)

    def hessian(self) -> Tensor:
        return unpacked(self.second, self.size) / max(1, self.count)


def panels(width: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Block rows of a [width, width] matrix, each with the columns up to the end of its diagonal
    block."""
    size = -(-width // (PANELS if device.type == "cpu" else GPU_PANELS))
    for start in range(0, width, size):
        end = min(start + size, width)
        yield slice(start, end), slice(0, end)


def packed_length(width: int) -> int:
    return sum((r.stop - r.start) * c.stop for r, c in panels(width, CPU))


def packed_blocks(vector: Tensor, width: int) -> Iterator[tuple[Tensor, slice, slice]]:
    """The blocks of a packed lower triangle as views, each with its rows and columns."""
    at = 0
    for rows, columns in panels(width, CPU):
        height = rows.stop - rows.start
        yield vector[at : at + height * columns.stop].view(height, columns.stop), rows, columns
        at += height * columns.stop


def unpacked(vector: Tensor, width: int) -> Tensor:
    """The symmetric matrix [width, width] of a packed lower triangle."""
    whole = vector.new_empty(width, width)
    for block, rows, columns in packed_blocks(vector, width):
        whole[rows, columns] = block
        whole[: rows.start, rows] = block[:, : rows.start].t()
    return whole


@contextmanager
def loose_products(device: torch.device) -> Iterator[None]:
    """Let FP32 products take the device's faster units: TF32 on a GPU, BF16 on a CPU that has
    units for it. For where it loses nothing: factors that are BF16 numbers, or a feedback that
    corrects itself."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def shrink(h: Tensor, moments: Moments) -> float:
    """Shrink H towards its own diagonal, in place, with the intensity of Ledoit and Wolf (2004),
    which is returned.

    Few tokens make the off-diagonal entries noise: the intensity is that noise's share of them,
    (E|x|^4 - |H|^2) / n over |H - diag H|^2, so it needs no setting and vanishes with many tokens.
    """
    diagonal = h.diagonal().clone()
    whole = _squares(torch.linalg.vector_norm(h, dim=1))
    off = whole - _squares(diagonal)
    intensity = 1.0
    if moments.count and off > 0:
        noise = (float(moments.fourth) / moments.count - whole) / moments.count
        intensity = min(1.0, max(0.0, noise / off))
    h.mul_(1 - intensity)
    h.diagonal().copy_(diagonal)
    return intensity


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())


class NotDefinite(Exception):
    """H could not be factored, even with more damping."""


def factor(h: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(L, D) with H + damping * mean(diag H) * I = (I + L) D (I + L)^T, L strictly lower.

    h [batch, d, d] is changed on its diagonal. GPTQ's feedback from column k to the columns j
    visited after it is row k of L, if columns are visited from the last to the first: one Cholesky
    factorisation gives it and no inverse is needed. Columns without any input get a unit pivot.
    L's diagonal holds ones, which nobody reads.
    """
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    diagonal.masked_fill_(diagonal == 0, 1.0)
    added = 0.0
    for amount in (damping, 10 * damping or 0.01, 1.0):
        diagonal.add_((amount - added) * mean)
        added = amount
        lower, failed = blocked_cholesky(h)
        if not failed.any():
            pivots = lower.diagonal(dim1=-2, dim2=-1).clone()
            return lower.div_(pivots.unsqueeze(-2)), pivots.square()
    raise NotDefinite("the second moments of the inputs cannot be factored")


def blocked_cholesky(h: Tensor, size: int = TILE) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of h [batch, d, d], and for each whether it failed (not 0).

    By block columns, mostly matrix products: faster than the libraries' own, which on a GPU take
    large matrices one after the other.
    """
    width = h.shape[-1]
    lower = torch.zeros_like(h)
    failed = torch.zeros(h.shape[0], dtype=torch.int32, device=h.device)
    for start in range(0, width, size):
        here, end = slice(start, min(start + size, width)), min(start + size, width)
        column = h[:, start:, here]
        if start:
            column = torch.baddbmm(
                column, lower[:, start:, :start], lower[:, here, :start].mT, alpha=-1
            )
        top, info = torch.linalg.cholesky_ex(column[:, : end - start])
        failed |= info
        lower[:, here, here] = top
        if end < width:
            lower[:, end:, here] = torch.linalg.solve_triangular(
                top.mT, column[:, end - start :], upper=True, left=False
            )
    return lower, failed
