"""Stored forms, bit for bit against compressed-tensors and against the definitions."""

from __future__ import annotations

import pytest
import torch
from mtp_retrofit import formats
from mtp_retrofit.gptq import GROUP

G = torch.Generator().manual_seed(0)


def test_packing_of_the_format_description():
    codes = torch.tensor([[-8, -7, -1, 0, 1, 2, 6, 7]], dtype=torch.int8)
    assert int(formats.pack(codes)[0, 0]) & 0xFFFFFFFF == 0xFEA98710
    assert torch.equal(formats.unpack(formats.pack(codes)), codes)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", [(2048, 4096), (4096, 2048)])
def test_compressed_tensors_reads_what_we_wrote(shape, sign):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor as P
    from compressed_tensors.compressors.pack_quantized.helpers import (
        pack_to_int32,
        unpack_from_int32,
    )
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    rows, columns = shape
    codes = torch.randint(-8, 8, shape, generator=G).to(torch.int8)
    scale = sign * (0.001 + 0.02 * torch.rand(rows, columns // GROUP, generator=G)).bfloat16()
    words = formats.pack(codes)
    assert torch.equal(words, pack_to_int32(codes, 4))
    assert torch.equal(unpack_from_int32(words, 4, torch.Size(shape)), codes)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP
        ),
    )
    stored = {
        "weight_packed": words,
        "weight_scale": scale,
        "weight_shape": torch.tensor(shape),
    }
    weight = P.decompress(dict(stored), scheme)["weight"]
    grouped = codes.view(rows, columns // GROUP, GROUP).float() * scale.float().unsqueeze(-1)
    assert torch.equal(weight, grouped.view(shape).bfloat16())
    again = P.compress({"weight": weight, "weight_scale": scale}, scheme)
    assert torch.equal(again["weight_packed"], words)


def test_fp4_values():
    packed = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2], dtype=torch.uint8)
    scale = torch.tensor([[127]], dtype=torch.uint8)
    values = formats.from_fp4(packed.view(torch.int8), scale)[0, :16].tolist()
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert values == positive + [-v for v in positive]


def test_fp4_scales_each_group_of_32():
    packed = torch.full((2, 32), 0x22, dtype=torch.int8)  # all ones
    scale = torch.tensor([[120, 121], [122, 123]], dtype=torch.uint8)
    for given in (scale, scale.view(torch.float8_e8m0fnu)):
        values = formats.from_fp4(packed, given)
        assert values[:, ::32].tolist() == [[2.0**-7, 2.0**-6], [2.0**-5, 2.0**-4]]


def test_fp8_blocks_that_do_not_divide():
    weight = torch.ones(200, 130).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    values = formats.from_fp8(weight, scale)
    assert values[0, 0] == 1 and values[0, 129] == 2 and values[199, 0] == 4
    assert values[128, 128] == 8 and values[127, 127] == 1
