"""Triton kernels; imported only where there is a GPU.

Each program works on `LANES` rows of the weights and all columns of one group.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAGIC = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding and subtracting it rounds |x| < 2^22 to the nearest integer, ties to even."""


@triton.jit
def search_kernel(
    w, weight, base, fractions, scales, count, rows,
    COLUMNS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    group = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    x = tl.load(w + (group * COLUMNS + column[:, None]) * rows + lane[None, :])
    importance = tl.load(weight + group * COLUMNS + column)
    origin = tl.load(base + group * rows + lane)
    best = origin
    least = tl.full([LANES], float("inf"), tl.float32)
    for c in range(count):
        s = (origin * tl.load(fractions + c)).to(tl.bfloat16).to(tl.float32)
        spread = tl.broadcast_to(s[None, :], [COLUMNS, LANES])
        q = (tl.math.div_rn(x, spread) + MAGIC) - MAGIC
        q = tl.minimum(tl.maximum(q, -8.0), 7.0)
        rest = x - q * spread
        total = tl.sum(rest * rest * importance[:, None], axis=0)
        better = total < least
        least = tl.where(better, total, least)
        best = tl.where(better, s, best)
    tl.store(scales + group * rows + lane, best)


@triton.jit
def block_kernel(
    t, w, feed, pivots, scales, group, error, codes, loss,
    t_batch, w_batch, feed_batch, feed_row, pivot_batch, scale_batch, group_batch,
    rows, COLUMNS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    batch = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    target = tl.load(t + batch * t_batch + column[:, None] * rows + lane[None, :])
    total = tl.load(loss + batch * rows + lane)
    for i in range(COLUMNS):
        k = COLUMNS - 1 - i
        x = tl.sum(tl.where(column[:, None] == k, target, 0.0), axis=0)
        which = tl.load(group + batch * group_batch + k)
        s = tl.load(scales + batch * scale_batch + which * rows + lane)
        q = (tl.math.div_rn(x, s) + MAGIC) - MAGIC
        q = tl.minimum(tl.maximum(q, -8.0), 7.0)
        rest = x - q * s
        total += rest * rest * tl.load(pivots + batch * pivot_batch + k)
        e = tl.load(w + batch * w_batch + k * rows + lane) - q * s
        tl.store(error + batch * w_batch + k * rows + lane, e)
        tl.store(codes + batch * w_batch + k * rows + lane, q.to(tl.int8))
        factors = tl.load(feed + batch * feed_batch + k * feed_row + column)
        factors = tl.where(column < k, factors, 0.0)
        target += factors[:, None] * e[None, :]
    tl.store(loss + batch * rows + lane, total)
