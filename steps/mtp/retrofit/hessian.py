"""Second moments of a linear's inputs: accumulated exactly, shrunk, factored.

GPTQ (Frantar et al. 2022, arXiv:2210.17323) minimises tr((W - Q) H (W - Q)^T) with H = X^T X / n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 4096
"""Rows of X taken at a time on a CPU, where they are widened to FP32 first."""
PANELS = 8
"""H is computed in this many block rows, each up to the diagonal only: 0.56 of the products."""


@dataclass
class Moments:
    """Sums over the rows x [d] of a calibration set: `second` of x x^T [d, d] FP32, `fourth` of
    |x|^4, and their `count`. Sums of parts of the set add up."""

    second: Tensor
    fourth: float
    count: int

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Moments:
        return cls(torch.zeros(width, width, device=device), 0.0, 0)

    def add(self, x: Tensor) -> None:
        """Add rows x [n, d], BF16 or FP32. Only the lower triangle of `second` is kept."""
        if x.ndim != 2 or x.shape[1] != self.second.shape[0]:
            raise ValueError(f"rows of shape {tuple(x.shape)} for {self.second.shape[0]} inputs")
        if not x.numel():
            return
        fourth = 0.0
        for rows in x.split(ROWS if x.device.type == "cpu" else max(ROWS, 1 << 17)):
            self._triangle(rows)
            fourth += float(rows.float().square().sum(1).square().sum(dtype=torch.float64))
        if fourth != fourth or fourth == float("inf"):
            raise ValueError("the inputs hold NaN or infinity")
        self.fourth += fourth
        self.count += x.shape[0]

    def _triangle(self, rows: Tensor) -> None:
        exact = rows.device.type != "cpu" and rows.dtype == torch.bfloat16
        if not exact:
            rows = rows.float()
        for panel, before in self._panels():
            into = self.second[panel, before]
            if exact:  # products of two BF16 numbers are exact in FP32: nothing is lost
                into += torch.mm(rows[:, panel].t(), rows[:, before], out_dtype=torch.float32)
            else:
                into.addmm_(rows[:, panel].t(), rows[:, before])

    def _panels(self) -> Iterator[tuple[slice, slice]]:
        """Block rows, each with the columns up to the end of its diagonal block."""
        width = self.second.shape[0]
        size = -(-width // PANELS)
        for start in range(0, width, size):
            end = min(start + size, width)
            yield slice(start, end), slice(0, end)

    def hessian(self) -> Tensor:
        """H = X^T X / n [d, d], symmetric."""
        h = self.second / max(1, self.count)
        for panel, _ in self._panels():
            h[: panel.start, panel] = h[panel, : panel.start].t()
        return h


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
        noise = (moments.fourth / moments.count - whole) / moments.count
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
        # H is symmetric; its transpose is laid out as LAPACK wants it, which saves a transposition.
        lower, failed = torch.linalg.cholesky_ex(h.mT)
        if not failed.any():
            pivots = lower.diagonal(dim1=-2, dim2=-1).clone()
            feed = torch.empty_like(h)
            torch.div(lower, pivots.unsqueeze(-2), out=feed)
            return feed, pivots.square()
    raise NotDefinite("the second moments of the inputs cannot be factored")
