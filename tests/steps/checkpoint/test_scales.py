"""Which scales of a large checkpoint are looked at, and which values are faults of which."""

from __future__ import annotations

import struct

import pytest

from runbook.steps.checkpoint.checkpoint import open_folder
from runbook.steps.checkpoint.headers import Tensor
from runbook.steps.checkpoint.lint import examine, scales, subject
from runbook.steps.checkpoint.lint.scales import Sample, _Scale
from tests.steps.mtp.defects import V33, clean


def scale(name="s", nbytes=64, dtype="F32", stored="fp8", mtp=False) -> _Scale:
    tensor = Tensor(name, "f", dtype, (nbytes // 4,), 100, 100 + nbytes)
    return _Scale(tensor, stored, mtp)


def chosen(sizes, budget, most, monkeypatch, mtp=()):
    monkeypatch.setattr(scales, "BUDGET", budget)
    monkeypatch.setattr(scales, "MOST_TENSORS", most)
    given = [scale(f"{i}", size, mtp=i in mtp) for i, size in enumerate(sizes)]
    found = scales._chosen(given, sum(sizes))
    return [(int(one.tensor.name), most, skip) for one, most, skip in found]


@pytest.mark.parametrize(
    ("sizes", "most", "taken"),
    [
        ([64] * 3, 3, [0, 1, 2]),
        ([64] * 4, 3, [0, 2]),
        ([64] * 7, 3, [0, 3, 6]),
        ([], 3, []),
    ],
)
def test_of_many_scales_some_are_taken_evenly(sizes, most, taken, monkeypatch):
    assert chosen(sizes, 1000, most, monkeypatch) == [(i, 64, 0) for i in taken]


def test_those_of_the_draft_come_first(monkeypatch):
    assert [i for i, *_ in chosen([64] * 5, 1000, 9, monkeypatch, mtp={2, 4})] == [2, 4, 0, 1, 3]
    assert [i for i, *_ in chosen([64] * 5, 1000, 2, monkeypatch, mtp={4})] == [4, 2]


def test_what_is_read_of_a_scale_is_its_share_of_the_budget_and_from_another_place(monkeypatch):
    whole = chosen([1600] * 2, 3200, 99, monkeypatch)
    assert whole == [(0, 1600, 0), (1, 1600, 0)], "the budget is enough"
    assert chosen([1, 3], 4, 99, monkeypatch) == [(0, 1, 0), (1, 3, 0)]
    part = chosen([1600] * 17, 17 * 400, 99, monkeypatch)
    assert {most for _, most, _ in part} == {400}
    # From the beginning to the end in sixteen steps, each at a whole word.
    assert [skip for *_, skip in part] == [1200 * i // 15 // 8 * 8 for i in range(16)] + [0]
    assert part[15][2] == 1200
    little = chosen([1600, 16], 100, 99, monkeypatch)
    assert little == [(0, 96, 0), (1, 64, 0)], "64 bytes at least"
    assert chosen([1600] * 3, 4799, 99, monkeypatch)[1] == (1, 1592, 0)


def words(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(
    ("of", "raw", "rules"),
    [
        ({}, words(0.5, 2.0), []),
        ({}, words(0.5)[:-1], []),
        ({}, words(0.5, float("nan"))[:-1], []),
        ({}, words(-0.0), ["scale_zero"]),
        ({}, words(-1.0), ["scale_range"]),
        ({"stored": "int4"}, words(-1.0), ["scale_negative"]),
        ({"stored": "int4"}, words(-1.0, 0.0), ["scale_negative"]),
        ({"stored": "int4"}, words(-0.0, 1.0), ["scale_zero"]),
        ({"stored": "int4", "mtp": True}, words(118.0), []),
        ({"stored": "int4", "mtp": True}, words(0.0), ["scale_zero"]),
        ({"mtp": True}, words(118.0), ["scale_range"]),
        ({"mtp": True}, words(0.0), ["scale_range"]),
        ({"dtype": "U8"}, b"", []),
        ({"dtype": "U8"}, b"\x80\xfe", []),
        ({"dtype": "U8"}, b"\x00\xff", ["scale_range"]),
        ({"dtype": "F8_E8M0", "mtp": True}, b"\x7e", []),
        ({"dtype": "F8_E8M0", "mtp": True}, b"\x7f", ["scale_range"]),
        ({"dtype": "F8_E8M0", "mtp": True, "stored": "mxfp4"}, b"\x7f", []),
        ({"dtype": "F8_E4M3", "stored": "nvfp4"}, b"\x7e\x01", []),
        ({"dtype": "F8_E4M3", "stored": "nvfp4"}, b"\x7f", ["scale_range"]),
        ({"dtype": "F8_E4M3", "stored": "nvfp4"}, b"\xff", ["scale_range"]),
        ({"dtype": "F8_E4M3", "stored": "nvfp4"}, b"\x80", ["scale_zero"]),
    ],
)
def test_which_values_are_faults(of, raw, rules):
    assert list(scales._faults(scale(**of), raw)) == rules


def test_what_cannot_be_read_is_passed_over(tmp_path):
    about = subject(open_folder(clean().write(tmp_path / "c")))
    real, asked = about.checkpoint.read, []

    def read(tensor, *part):
        if part:  # of a scale
            asked.append(tensor.nbytes)
        return None if part and len(asked) == 1 else real(tensor, *part)

    about.checkpoint.read = read
    sample = Sample()
    assert {f.severity for f in examine(about, V33, sample)} <= {"info", "warning"}
    assert sample.tensors == sample.of - 1 == len(asked) - 1 > 10
    assert sample.read == sample.bytes - asked[0]


def test_what_is_chosen_is_read_and_no_more(tmp_path, monkeypatch):
    about = subject(open_folder(clean().write(tmp_path / "c")))
    monkeypatch.setattr(scales, "BUDGET", 1000)
    real, choose, asked, parts = about.checkpoint.read, scales._chosen, [], []

    def read(tensor, *part):
        asked.extend([(tensor.name, *part)] if part else [])
        return real(tensor, *part)

    def chosen(*given):
        found = list(choose(*given))
        parts.extend((one.tensor.name, most, skip) for one, most, skip in found)
        return found

    about.checkpoint.read = read
    monkeypatch.setattr(scales, "_chosen", chosen)
    examine(about, V33)
    assert asked == parts and {most for _, most, _ in parts} >= {64}
    assert len({skip for *_, skip in parts}) > 5
