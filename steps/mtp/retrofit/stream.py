"""Rows of a block's experts turned into moments as they come, so that they need not be kept.

A rank-k update for each forward pass would read and write every expert's matrices for a handful of
rows: rows are grouped by expert and added when an expert has `ROWS` of them. Result and held-out
rows are those of the same rows kept as tokens, but for the order in which FP32 sums are taken.

Host memory for 256 experts of 4096 inputs and 2048 intermediate values: moments of 256 * 0.5625 *
(4096^2 + 2048^2) * 4 B = 12.1 GB, on the disk as well; waiting rows of at most 256 * 2048 * 8 KiB =
4.3 GB; held-out rows of at most 0.6 GB. Measured for 473,000 tokens, six experts each, with
tests/benchmarks/capture.py on 16 virtual cores: 372 s, 13.6 GB of memory, 12.6 GB of disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .calibration import HELD_MOST, HELD_SHARE, Inputs, hidden, joined, save_moments
from .hessian import PackedMoments
from .source import Experts, InputError

ROWS = 2048
"""Rows of an expert that are added at a time."""
GATHER = 2048
"""Tokens that are grouped by expert at a time."""


@dataclass
class Taken:
    """What was taken of one expert: rows that wait, with their routing weights, rows held out so
    far (those at the multiples of `stride`, counted from 1), and moments of all others."""

    seen: int = 0
    stride: int = HELD_SHARE
    waiting: int = 0
    rows: list[Tensor] = field(default_factory=list)
    routing: list[Tensor] = field(default_factory=list)
    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    moments: tuple[PackedMoments, PackedMoments] | None = None

    def add(self, x: Tensor, routing: Tensor) -> None:
        """Rows x [n, d] and their routing weights [n]."""
        at = torch.arange(self.seen + 1, self.seen + len(x) + 1)
        self.seen += len(x)
        picked = at % self.stride == 0
        self._wait(x[~picked], routing[~picked])
        self.held += zip(x[picked].unbind(), routing[picked].unbind(), strict=True)
        while len(self.held) > HELD_MOST:
            self.stride *= 2
            back, self.held = self.held[::2], self.held[1::2]
            self._wait(*(torch.stack(parts) for parts in zip(*back, strict=True)))

    def _wait(self, x: Tensor, routing: Tensor) -> None:
        self.rows.append(x)
        self.routing.append(routing)
        self.waiting += len(x)


class Stream:
    """Takes rows in order; `finish` writes `moments-E.safetensors` of each expert to `folder`.

    The down projection's inputs are computed with the experts' own weights; `limit` is the clamp
    of the model, if it has one. Methods raise `InputError`, naming the expert by a weight of it.
    """

    def __init__(self, experts: Experts, limit: float | None, folder: Path) -> None:
        self.experts = experts
        self.limit = limit
        self.folder = folder
        self.tokens = 0
        self._taken = [Taken() for _ in range(experts.count)]
        self._gathered: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting = 0

    def add(self, x: Tensor, experts: Tensor, weights: Tensor) -> None:
        """The experts' input x [n, d] BF16, the chosen experts [n, k] and their routing weights
        [n, k] F32, on the CPU. They are kept for a while and must not change."""
        self._gathered.append((x, experts, weights))
        self._waiting += len(x)
        self.tokens += len(x)
        if self._waiting >= GATHER:
            self._group()

    def finish(self, report: Callable[[int], None] = lambda expert: None) -> list[int]:
        """Add what waits and write all; returns the number of rows of each expert."""
        self._group()
        for expert, taken in enumerate(self._taken):
            self._write(expert, taken)
            taken.moments, taken.held = None, []
            report(expert)
        return [taken.seen for taken in self._taken]

    def _group(self) -> None:
        if not self._gathered:
            return
        x, experts, weights = (torch.cat(parts) for parts in zip(*self._gathered, strict=True))
        self._gathered, self._waiting = [], 0
        chosen = experts.flatten().long()
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self._taken):
            raise InputError(
                f"the model chose expert {int(chosen.min())} to {int(chosen.max())}, "
                f"{self.experts.folder} has {len(self._taken)}"
            )
        order = chosen.argsort(stable=True)
        routing = weights.flatten()[order]
        rows = order // experts.shape[1]
        counts = torch.bincount(chosen, minlength=len(self._taken)).tolist()
        begin = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            end = begin + count
            taken = self._taken[expert]
            taken.add(x[rows[begin:end]], routing[begin:end])
            if taken.waiting >= ROWS:
                self._flush(expert, taken, self.experts.weights(expert))
            begin = end

    def _flush(self, expert: int, taken: Taken, weights: dict[str, Tensor]) -> None:
        """Add the waiting rows to the moments."""
        gate, up, _ = weights.values()
        name = next(iter(weights))
        if taken.moments is None:
            taken.moments = PackedMoments.empty(gate.shape[1]), PackedMoments.empty(gate.shape[0])
        if not taken.waiting:
            return
        x, routing = torch.cat(taken.rows), torch.cat(taken.routing)
        taken.rows, taken.routing, taken.waiting = [], [], 0
        into, out = taken.moments
        try:
            into.add(x)
            out.add(hidden(x, joined(gate, up), routing, self.limit))
            into.check()  # now, not when hours of prompts are answered
            out.check()
        except ValueError as error:
            raise InputError(f"the captured inputs of {name}: {error}") from error

    def _write(self, expert: int, taken: Taken) -> None:
        weights = self.experts.weights(expert)
        self._flush(expert, taken, weights)
        assert taken.moments is not None
        gate, up, _ = weights.values()
        held = torch.zeros(0, gate.shape[1], dtype=torch.bfloat16)
        held_out = torch.zeros(0, gate.shape[0], dtype=torch.bfloat16)
        if taken.held:
            held, routing = (torch.stack(parts) for parts in zip(*taken.held, strict=True))
            held_out = hidden(held, joined(gate, up), routing, self.limit)
        Inputs(*taken.moments, held, held_out).check(next(iter(weights)))
        save_moments(self.folder, expert, *taken.moments, held, held_out)
