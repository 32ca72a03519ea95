"""One weight with its scales, as a header describes them, and what is a fault of them."""

from __future__ import annotations

import pytest

from runbook.steps.checkpoint.checkpoint import Checkpoint
from runbook.steps.checkpoint.headers import Header, Tensor
from runbook.steps.checkpoint.layout import Layout, Linear
from runbook.steps.checkpoint.lint import linears
from runbook.steps.checkpoint.lint.subject import Subject
from runbook.steps.checkpoint.quantization import Quantization


def faults(parts, columns=64, group=None, raw=b"") -> dict[str, tuple[str, ...]]:
    """The faults of a weight of 4 rows; `parts` are dtypes and shapes by what follows its name."""
    tensors = tuple(Tensor(f"w{p}", "f", d, s, 0, len(raw)) for p, (d, s) in parts.items())
    read = Checkpoint(
        "c", {}, {t.name: "f" for t in tensors}, {}, {"f": Header(tensors, {}, 0)},
        lambda *where: raw, local=True,
    )  # fmt: skip
    weights = {"num_bits": 4, "type": "int", "group_size": group}
    quantization = Quantization({"config_groups": {"g": {"weights": weights}}})
    layout = Layout("deepseek_v4", linears={"w": Linear("w", (4, columns), "expert", False)})
    about = Subject(read, layout, quantization)
    return {fault.id: fault.tensors for fault in linears.check(about, layout)}


def int4(words, scales, shape=("I64", (2,))):
    return {".weight_packed": ("I32", (4, words)), ".weight_scale": ("BF16", (4, scales)),
            ".weight_shape": shape}  # fmt: skip


def mxfp4(dtype, columns, scales):
    return {".weight": (dtype, (4, columns)), ".scale": ("F8_E8M0", (4, scales))}


@pytest.mark.parametrize(
    ("parts", "columns", "group", "expected"),
    [
        # Two values a byte, or as many values as there are.
        (mxfp4("I8", 32, 2), 64, None, {}),
        (mxfp4("I8", 64, 2), 64, None, {"tensor_shape": ("w.weight",)}),
        (mxfp4("F4", 64, 2), 64, None, {}),
        (mxfp4("F4", 32, 2), 64, None, {"tensor_shape": ("w.weight",)}),
        # Groups and words that do not divide a weight.
        (mxfp4("I8", 31, 1), 63, None, {"scale_shape": ("w.scale",)}),
        (int4(8, 1), 64, None, {}),
        (int4(8, 2), 64, 32, {}),
        (int4(7, 3), 60, 20, {"packed_shape": ("w.weight_packed",)}),
        (int4(7, 2), 56, 24, {"packed_shape": ("w.weight_scale",)}),
        # No scale.
        ({p: part for p, part in int4(8, 1).items() if p != ".weight_scale"}, 64, None,
         {"scale_missing": ("w.weight_packed",)}),
    ],
)  # fmt: skip
def test_shapes_of_a_weight_and_its_scales(parts, columns, group, expected):
    raw = (4).to_bytes(8, "little") + columns.to_bytes(8, "little")
    assert faults(parts, columns, group, raw) == expected


@pytest.mark.parametrize(
    ("dtype", "raw", "told"),
    [
        ("I64", "04000000000000004000000000000000", False),
        ("I64", "04000000000000004100000000000000", True),
        ("I64", "0400000040000000", False),  # a header that contradicts itself is told of the file
        ("I32", "0400000040000000", False),
        ("I32", "0400000041000000", True),
        ("I32", "04000000000000004100000000000000", False),
    ],
)
def test_what_the_words_stand_for(dtype, raw, told):
    found = faults(int4(8, 1, (dtype, (2,))), raw=bytes.fromhex(raw))
    assert found == ({"weight_shape": ("w.weight_shape",)} if told else {})
