"""GPTQ to symmetric INT4 in groups, for a batch of equal linears, on a CPU or a GPU.

Columns are visited once; each column's rounding error is fed forward to the columns not yet
visited. The feedback is taken from one factor of H (see `hessian.factor`) against the original
weights: T = W + E L with E = W - Q, so errors do not pile up and the products may be of low
precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import gpu, native
from .hessian import factor, loose_products

GROUP = 128
"""Input columns that share a scale; also the columns quantised between two large products."""
LOW, HIGH = -8, 7
ABSMAX = 7.5
"""absmax scales map the largest magnitude to this, as compressed-tensors does."""
SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76, 0.72, 0.68, 0.64)
"""Fractions of the absmax scale that the search tries."""
INNER = 32

Order = Literal["static", "none"]
Scale = Literal["absmax", "mse", "weighted"]


@dataclass(frozen=True)
class Options:
    """`order`: visit columns by falling second moment (static) or as they are. `damping`: added to
    the diagonal of H, as a fraction of its mean. `shrink`: Ledoit-Wolf first. `scale`: absmax, or
    searched for the least squared error, plain or weighted with the inputs' second moments.
    `signed`: allow negative scales, which map the largest weight to -8."""

    order: Order = "static"
    damping: float = 0.05
    shrink: bool = True
    scale: Scale = "weighted"
    signed: bool = False


@dataclass
class Quantised:
    """`codes` int8 [batch, rows, columns] in -8..7; `scales` [batch, rows, columns / 128] FP32
    with values that BF16 holds; `loss` [batch]: the minimised trace."""

    codes: Tensor
    scales: Tensor
    loss: Tensor

    def weights(self) -> Tensor:
        """What the stored form stands for: codes times scales [batch, rows, columns] FP32."""
        batch, rows, columns = self.codes.shape
        grouped = self.codes.view(batch, rows, columns // GROUP, GROUP).float()
        return (grouped * self.scales.unsqueeze(-1)).view(batch, rows, columns)


def quantise(weights: Tensor, h: Tensor, options: Options) -> Quantised:
    """Quantise weights [batch, rows, columns] for inputs of second moments h [batch, columns,
    columns], already shrunk if that is wanted. Raises `hessian.NotDefinite`, and `ValueError` for
    shapes that do not fit or numbers that are not finite."""
    batch, _, columns = weights.shape
    if columns % GROUP or h.shape != (batch, columns, columns):
        raise ValueError(f"weights {tuple(weights.shape)} and moments {tuple(h.shape)}")
    moments = h.diagonal(dim1=-2, dim2=-1).clone()
    turned = _turned(weights)
    turned.masked_fill_((moments == 0).unsqueeze(-1), 0.0)
    scales = choose_scales(turned, moments, options)
    if not (torch.isfinite(scales).all() and torch.isfinite(moments).all()):
        raise ValueError("weights or moments are not finite")
    # Columns are visited from the last to the first: the greatest moment belongs last.
    if options.order == "static":
        order = moments.argsort(dim=-1, stable=True)
    else:
        order = torch.arange(columns - 1, -1, -1, device=weights.device).repeat(batch, 1)
    feed, pivots = factor(_reordered(_reordered(h, order, 0), order, 1), options.damping)
    ordered = _reordered(turned, order, 0)
    # Errors are fed back against the original weights, so they cannot pile up.
    with loose_products(weights.device):
        codes, loss = _columns(ordered, feed, pivots, scales, (order // GROUP).to(torch.int32))
    codes = _reordered(codes, order.argsort(dim=-1), 0)
    return Quantised(_transposed(codes), _transposed(scales), loss)


def _turned(weights: Tensor) -> Tensor:
    """Weights as FP32 [batch, columns, rows]."""
    return _transposed(weights).float()


def _transposed(values: Tensor) -> Tensor:
    """Each matrix of a batch transposed, one by one: torch does that in tiles."""
    batch, rows, columns = values.shape
    result = values.new_empty(batch, columns, rows)
    for part, into in zip(values, result, strict=True):
        into.copy_(part.t())
    return result


def _reordered(values: Tensor, order: Tensor, dim: int) -> Tensor:
    """Each matrix of a batch with its rows (dim 0) or columns (dim 1) in the order given."""
    result = torch.empty_like(values)
    for part, picked, into in zip(values, order, result, strict=True):
        torch.index_select(part, dim, picked, out=into)
    return result


def nearest(weights: Tensor, moments: Tensor, options: Options) -> Quantised:
    """Round to nearest, with the same scales: for experts without enough tokens."""
    batch, rows, columns = weights.shape
    turned = _turned(weights)
    scales = _transposed(choose_scales(turned, moments, options))
    grouped = weights.float().view(batch, rows, columns // GROUP, GROUP)
    codes = (grouped / scales.unsqueeze(-1)).round().clamp(LOW, HIGH).to(torch.int8)
    return Quantised(codes.view_as(weights), scales, torch.zeros(batch, device=weights.device))


def choose_scales(turned: Tensor, moments: Tensor, options: Options) -> Tensor:
    """Scales [batch, groups, rows] for weights [batch, columns, rows], rounded to BF16: the error
    that is fed back must be that of the stored numbers."""
    batch, columns, rows = turned.shape
    grouped = turned.view(batch, columns // GROUP, GROUP, rows)
    search = options.scale != "absmax"
    base = _base(grouped, options.signed and search)
    if not search:
        return base.to(torch.bfloat16).float()
    fractions = torch.tensor(SHRINKS, device=turned.device)
    if options.signed:  # a negative scale reaches -8 where a positive one reaches 7
        fractions = torch.cat([fractions, -fractions * ABSMAX / 8])
    weight = moments if options.scale == "weighted" else torch.ones_like(moments)
    weight = weight.view(batch, columns // GROUP, GROUP).contiguous()
    if gpu.usable(grouped):
        return gpu.search(grouped, weight, base, fractions)
    if not native.usable(grouped[0, 0]):
        return _search(grouped, weight, base, fractions)
    scales = torch.empty_like(base)
    for b in range(batch):
        for g in range(columns // GROUP):
            native.search(grouped[b, g], weight[b, g], base[b, g], fractions, scales[b, g])
    return scales


def _base(grouped: Tensor, signed: bool) -> Tensor:
    high, low = grouped.amax(2), grouped.amin(2)
    largest = torch.where(high >= -low, high, low if signed else -low)
    base = largest / ABSMAX
    return torch.where(base == 0, torch.full_like(base, 1e-8), base)


def _search(grouped: Tensor, weight: Tensor, base: Tensor, fractions: Tensor) -> Tensor:
    """For each row and group the fraction of `base` with the least weighted error: grouped
    [batch, groups, 128, rows], weight [batch, groups, 128], base [batch, groups, rows]."""
    least = torch.full_like(base, float("inf"))
    scales = base.clone()
    for fraction in fractions:
        s = (base * fraction).to(torch.bfloat16).float()
        spread = s.unsqueeze(2)
        error = (grouped / spread).round_().clamp_(LOW, HIGH).mul_(spread).sub_(grouped)
        total = torch.matmul(weight.unsqueeze(2), error.square_()).squeeze(2)
        better = total < least
        least = torch.where(better, total, least)
        scales = torch.where(better, s, scales)
    return scales


def _columns(
    w: Tensor, feed: Tensor, pivots: Tensor, scales: Tensor, group: Tensor
) -> tuple[Tensor, Tensor]:
    """Visit the columns of w [batch, columns, rows], last to first; returns codes and losses."""
    batch, columns, rows = w.shape
    target = w.clone()
    error = torch.empty_like(w)
    codes = torch.empty_like(w, dtype=torch.int8)
    loss = torch.zeros(batch, rows, device=w.device)
    fast = native.usable(w)

    def visit(start: int, end: int) -> None:
        """Halves, the later columns first: few large products instead of many narrow ones."""
        if end - start > GROUP:
            middle = start + (end - start) // (2 * GROUP) * GROUP
            visit(middle, end)
            target[:, start:middle].baddbmm_(
                feed[:, middle:end, start:middle].mT, error[:, middle:end]
            )
            visit(start, middle)
            return
        block = slice(start, end)
        here = (
            target[:, block], w[:, block], feed[:, block, block], pivots[:, block], scales,
            group[:, block], error[:, block], codes[:, block], loss,
        )  # fmt: skip
        if gpu.usable(w):
            gpu.block(*here)
        elif fast:
            for b in range(batch):
                native.block(*(part[b] for part in here))
        else:
            _block(*here)

    visit(0, columns)
    return codes, loss.sum(-1)


def _block(
    t: Tensor, w: Tensor, feed: Tensor, pivots: Tensor, scales: Tensor, group: Tensor,
    error: Tensor, codes: Tensor, loss: Tensor,
) -> None:  # fmt: skip
    """One block of columns in torch, for the whole batch at once; t is used up."""
    batch, columns, rows = t.shape
    s = scales.gather(1, group.long().unsqueeze(-1).expand(batch, columns, rows))
    for end in range(columns, 0, -INNER):
        start = max(0, end - INNER)
        for k in range(end - 1, start - 1, -1):
            q = (t[:, k] / s[:, k]).round_().clamp_(LOW, HIGH)
            codes[:, k] = q
            torch.addcmul(w[:, k], q, s[:, k], value=-1, out=error[:, k])
            if k > start:
                t[:, start:k].addcmul_(feed[:, k, start:k].unsqueeze(-1), error[:, k].unsqueeze(1))
        if start:
            t[:, :start].baddbmm_(feed[:, start:end, :start].transpose(1, 2), error[:, start:end])
    rest = t - codes * s
    loss += (rest.square_() * pivots.unsqueeze(-1)).sum(1)
