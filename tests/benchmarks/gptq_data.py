"""A synthetic routed expert of the DeepSeek-V4-Flash MTP block: weights, inputs, held-out inputs.

Deterministic for (seed, expert, shape, tokens) and a torch version. Weights have heavy tails and
lie on the MXFP4 grid, as the released checkpoint stores them. Inputs x are RMS-normalised draws
of a decaying spectrum with an expert-specific subspace and mean, outlier channels and heavy-tailed
gains. The input of w2 is the model's own: silu(min(w1 x, 10)) * clamp(w3 x, -10, 10) * p with the
routing weight p.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
SEED = 20261123
LIMIT = 10.0
NAMES = ("w1", "w3", "w2")


def snap(w: Tensor, group: int = 32) -> Tensor:
    """The nearest MXFP4 values: E2M1 with one power-of-two scale for 32 input columns."""
    rows, columns = w.shape
    grouped = w.view(rows, columns // group, group)
    largest = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-12)
    scale = torch.exp2(torch.floor(torch.log2(largest)) - 2)
    values = (grouped / scale).clamp(-6, 6)
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    near = E2M1[torch.bucketize(values.abs(), middles)] * values.sign()
    return (near * scale).view(rows, columns)


class Expert:
    """Tensors of one expert: `w` by name, `inputs(name)` for calibration, `errors` of a result."""

    def __init__(
        self,
        tokens: int,
        *,
        d: int = 4096,
        f: int = 2048,
        held: int = 2048,
        expert: int = 0,
        seed: int = SEED,
    ) -> None:
        self.tokens = tokens
        shared = torch.Generator().manual_seed(seed)
        own = torch.Generator().manual_seed(seed * 1000003 + expert + 1)
        basis, _ = torch.linalg.qr(torch.randn(d, d, generator=shared))
        spectrum = 1 / (torch.arange(d, dtype=torch.float32) + 8)
        spectrum *= d / spectrum.sum()
        outliers = max(1, round(0.003 * d))
        channels = torch.randperm(d, generator=shared)[:outliers]
        strength = 6 + 10 * torch.rand(outliers, generator=shared)
        gain = torch.exp(0.35 * torch.randn(d, generator=shared))
        gain[channels] *= strength
        boosted = torch.randperm(d // 4, generator=own)[:32] + 8
        spectrum[boosted] *= 12.0
        mean = torch.randn(d, generator=own)
        mean *= 0.35 * math.sqrt(d) / mean.norm()
        colour = (basis * spectrum.sqrt()).T.contiguous()

        def draw(count: int) -> Tensor:
            parts = []
            for start in range(0, count, 4096):
                n = min(4096, count - start)
                z = torch.randn(n, d, generator=own) @ colour
                t = torch.randn(n, 5, generator=own).square().sum(1, keepdim=True) / 5
                z = (z + mean) / t.sqrt()
                z *= torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-6)
                parts.append((z * gain).to(torch.bfloat16))
            return torch.cat(parts)

        def weight(rows: int, columns: int, deviation: float) -> Tensor:
            w = torch.randn(rows, columns, generator=own)
            w *= 1 + 0.25 * torch.randn(rows, columns, generator=own).abs()
            w *= torch.exp(0.25 * torch.randn(rows, 1, generator=own)) * deviation
            return snap(w).to(torch.bfloat16)

        self.x, self.held_x = draw(tokens), draw(held)
        deviation = 1.3 / math.sqrt(self.x.float().square().sum(1).mean().item())
        self.w = {
            "w1": weight(f, d, deviation),
            "w3": weight(f, d, deviation),
            "w2": weight(d, f, 1 / math.sqrt(f)),
        }
        routing = 1.5 * torch.softmax(torch.randn(tokens, 6, generator=own), -1)[:, :1]
        self.held_p = 1.5 * torch.softmax(torch.randn(held, 6, generator=own), -1)[:, :1]
        self.h = hidden(self.x, routing, self.w)
        self.held_h = hidden(self.held_x, self.held_p, self.w)

    def inputs(self, name: str) -> Tensor:
        return self.h if name == "w2" else self.x

    def error(self, weights: dict[str, Tensor]) -> float:
        """|y - y'| / |y| over the whole expert's output for held-out tokens."""
        y = self.held_h.float() @ self.w["w2"].float().T
        h = hidden(self.held_x, self.held_p, weights)
        return float((y - h.float() @ weights["w2"].float().T).norm() / y.norm())


def hidden(x: Tensor, p: Tensor, w: dict[str, Tensor]) -> Tensor:
    gate = (x.float() @ w["w1"].float().T).clamp(max=LIMIT)
    up = (x.float() @ w["w3"].float().T).clamp(-LIMIT, LIMIT)
    return (torch.nn.functional.silu(gate) * up * p).to(torch.bfloat16)
