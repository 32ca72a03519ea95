"""The stored forms of weights: MXFP4 and FP8 of the upstream checkpoint, packed INT4 of ours."""

from __future__ import annotations

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
WORD = 8


def exponents(scale: Tensor) -> Tensor:
    """E8M0 scales as FP32, also where their bytes are declared as U8: 2^(byte - 127)."""
    if scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    return scale.float()


def from_fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """MXFP4 to BF16, exactly: packed [out, in / 2] with the lower column in the lower four bits,
    scale [out, in / 32]."""
    table = torch.tensor([*E2M1, *(-v for v in E2M1)], device=packed.device)
    raw = packed.view(torch.uint8).to(torch.int32)
    values = table[torch.stack([raw & 15, raw >> 4], -1).flatten(-2)]
    rows, columns = values.shape
    grouped = values.view(rows, scale.shape[1], columns // scale.shape[1])
    return (grouped * exponents(scale).unsqueeze(-1)).view(rows, columns).to(torch.bfloat16)


def from_fp8(weight: Tensor, scale: Tensor, block: int = 128) -> Tensor:
    """E4M3 with one scale for each block of 128 x 128, to BF16."""
    rows, columns = weight.shape
    spread = exponents(scale).repeat_interleave(block, 0)[:rows]
    spread = spread.repeat_interleave(block, 1)[:, :columns]
    return (weight.float() * spread).to(torch.bfloat16)


def pack(codes: Tensor) -> Tensor:
    """INT4 codes [out, in] in -8..7 as compressed-tensors packs them: [out, in / 8] int32, column
    8 j + i of a row in bits 4 i to 4 i + 3 of word j, each code as code + 8."""
    rows, columns = codes.shape
    nibbles = codes.view(rows, columns // WORD, WORD).to(torch.int32) + 8
    shifts = torch.arange(0, 4 * WORD, 4, dtype=torch.int32, device=codes.device)
    return (nibbles << shifts).sum(-1, dtype=torch.int32)


def unpack(words: Tensor) -> Tensor:
    """The inverse of `pack`."""
    shifts = torch.arange(0, 4 * WORD, 4, dtype=torch.int32, device=words.device)
    nibbles = (words.unsqueeze(-1) >> shifts) & 15
    return (nibbles - 8).flatten(-2).to(torch.int8)
