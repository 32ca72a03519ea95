"""The two loops of `kernel.cpp` for GPUs, in Triton; without Triton the torch form serves."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

ROWS = 64
GROUP = 128


@lru_cache(maxsize=1)
def _available() -> bool:
    return find_spec("triton") is not None


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can work on a tensor [..., rows]."""
    return tensor.is_cuda and tensor.shape[-1] % ROWS == 0 and _available()


def search(grouped: Tensor, weight: Tensor, base: Tensor, fractions: Tensor) -> Tensor:
    """As `gptq._search`: grouped [batch, groups, 128, rows]; returns [batch, groups, rows]."""
    batch, groups, _, rows = grouped.shape
    scales = torch.empty_like(base)
    grid = (rows // ROWS, batch * groups)
    from .triton_kernels import search_kernel

    search_kernel[grid](
        grouped.contiguous(), weight.contiguous(), base.contiguous(), fractions, scales,
        fractions.numel(), rows, GROUP, ROWS,
    )  # fmt: skip
    return scales


def block(
    t: Tensor, w: Tensor, feed: Tensor, pivots: Tensor, scales: Tensor, group: Tensor,
    error: Tensor, codes: Tensor, loss: Tensor,
) -> None:  # fmt: skip
    """As `gptq._block`: t, w, error, codes [batch, 128, rows], feed [batch, 128, 128]."""
    batch, columns, rows = t.shape
    grid = (rows // ROWS, batch)
    from .triton_kernels import block_kernel

    block_kernel[grid](
        t, w, feed, pivots, scales, group, error, codes, loss,
        t.stride(0), w.stride(0), feed.stride(0), feed.stride(1), pivots.stride(0),
        scales.stride(0), group.stride(0), rows, columns, ROWS,
    )  # fmt: skip
