"""The output error of quantised weights on inputs that were held out."""

from __future__ import annotations

import torch
from torch import Tensor

from .gptq import Options, Quantised, nearest
from .hessian import loose_products

ABSMAX = Options(scale="absmax")
"""What errors are compared with: round to nearest with absmax scales."""


def errors(
    weights: Tensor, made: Quantised, held: list[Tensor], count: int
) -> list[list[Tensor | None]]:
    """|x (W - Q)| / |x W| on held-out rows x: of the result, and of absmax rounding to nearest.

    For each expert and each of `count` equal parts of its weights [batch, rows, columns] a tensor
    [2] on the device, or None if no rows were held out.
    """
    batch, rows, columns = weights.shape
    most = max(len(x) for x in held)
    if not most:
        return [[None] * count for _ in held]
    x = weights.new_zeros(batch, most, columns, dtype=torch.float32)  # such rows add nothing
    for into, part in zip(x, held, strict=True):
        into[: len(part)] = part
    w = weights.float()
    plain = nearest(weights, w.new_ones(batch, columns), ABSMAX)
    norms = []
    with loose_products(w.device):
        for part in (w - made.weights(), w - plain.weights(), w):
            lost = (x @ part.mT).view(batch, most, count, rows // count)
            norms.append(torch.linalg.vector_norm(lost, dim=(1, 3)))
    relative = torch.stack(norms[:2], -1) / norms[2].unsqueeze(-1)
    return [
        list(error) if len(x) else [None] * count for error, x in zip(relative, held, strict=True)
    ]
