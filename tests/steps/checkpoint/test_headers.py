"""Headers by safetensors' own rules: a table of cases, the library's verdict beside ours where it
is installed, and anything at all without a traceback."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.steps.checkpoint.headers import ITEM_BITS, HeaderError, parse
from tests.cpu import bounded, examples


def entry(dtype: Any = "F32", shape: Any = (2,), at: Any = (0, 8), **more: Any) -> dict[str, Any]:
    offsets = list(at) if isinstance(at, tuple) else at
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def file(header: bytes | dict[str, Any], data: int = 8) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"\0" * data


ONE = json.dumps({"a": entry()}).encode()
FIELD = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":%s}}'


def sized(dtype: str, bits: int) -> bytes:
    return file({"a": entry(dtype, (16,), (0, 2 * bits))}, 2 * bits)


SOUND = {
    **{f"dtype {name}": sized(name, bits) for name, bits in ITEM_BITS.items()},
    "no tensors": file({}, 0),
    "an empty name": file({"": entry()}),
    "a scalar": file({"a": entry(shape=(), at=(0, 4))}, 4),
    "nothing in it": file({"a": entry(), "z": entry(shape=(0,), at=(8, 8))}),
    "a zero before what would overflow": file(
        {"a": entry(shape=(0, 1 << 62, 1 << 62), at=(0, 0))}, 0
    ),
    "whole bytes of 4 bits": file({"a": entry("F4", (4,), (0, 2))}, 2),
    "metadata null": file({"__metadata__": None, "a": entry()}),
    "metadata": file({"__metadata__": {"format": "pt"}, "a": entry()}),
    "padding": file(ONE + b"  \n\t"),
    "space before": file(b" \n" + ONE),
    "another field": file({"a": entry(more=[1, {"x": None}])}),
    "a field nested 125 deep": file(FIELD % (b"[" * 125 + b"]" * 125)),
}
REFUSED = {
    "seven bytes": b"1234567",
    "a header longer than the file": struct.pack("<Q", 1000) + ONE,
    "a header beyond the limit": struct.pack("<Q", 100_000_001) + ONE,
    "no header": file(b""),
    "a byte order mark": file(b"\xef\xbb\xbf" + ONE),
    "UTF-16": file(ONE.decode().encode("utf-16")),
    "no UTF-8": file(ONE.replace(b'"a"', b'"\xff"')),
    "half a surrogate pair": file(ONE.replace(b'"a"', b'"\\ud800"')),
    "a control character": file(ONE.replace(b'"a"', b'"\x01"')),
    "NUL after it": file(ONE + b"\0"),
    "more after it": file(ONE + b"x"),
    "a list": file(b"[]"),
    "a page": file(b"<html>log in</html>"),
    "a tensor of null": file({"a": None}),
    "no dtype": file({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "no shape": file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "no offsets": file({"a": {"dtype": "F32", "shape": [2]}}),
    **{
        f"dtype {name!r}": file({"a": entry(name)})
        for name in ("f32", "C128", "U4", "F6", "F8_E4M3FN", "NVFP4", 3, None, ["F32"])
    },
    **{
        f"shape {shape!r}": file({"a": entry(shape=shape)})
        for shape in (
            [2.0],
            ["2"],
            [True, 2],
            [-2],
            [[2]],
            None,
            2,
            {},
            [1 << 64],
            [1 << 62, 1 << 62, 0],
        )
    },
    "shape 2e0": file(ONE.replace(b"[2]", b"[2e0]")),
    "shape -0": file({"a": entry(shape=(0,), at=(0, 0))}, 0).replace(b"[0]", b"-0]"),
    **{
        f"offsets {at!r}": file({"a": entry(at=at)})
        for at in ([0, 8.0], [-8, 0], [8, 0], [0], [0, 4, 8], None, "08", {"0": 8})
    },
    **{
        f"metadata {value!r}": file({"__metadata__": value, "a": entry()})
        for value in ({"a": 1}, {"a": None}, {"a": {}}, [], "x", 3)
    },
    "metadata twice": file(b'{"__metadata__":{},"__metadata__":{},' + ONE[1:]),
    "a field twice": file(ONE.replace(b'"dtype"', b'"dtype": "F32", "dtype"')),
    "NaN": file(FIELD % b"NaN"),
    "a number out of range": file(FIELD % b"1e999"),
    "an integer out of range": file(FIELD % (b"9" * 5000)),
    "a field nested 126 deep": file(FIELD % (b"[" * 126 + b"]" * 126)),
    "nested without end": file(FIELD % (b"[" * 100_000)),
    "nested 100,000 deep": file(FIELD % (b"[" * 100_000 + b"]" * 100_000)),
    "a hole": file({"a": entry(), "b": entry(at=(9, 17))}, 17),
    "a hole at the start": file({"a": entry(at=(1, 9))}, 9),
    "an overlap": file({"a": entry(), "b": entry(at=(4, 12))}, 12),
    "two in one place": file({"a": entry(), "b": entry()}),
    "an empty one within another": file({"a": entry(), "z": entry(shape=(0,), at=(4, 4))}),
    "another length than its shape": file({"a": entry(at=(0, 4))}, 4),
    "half a byte": file({"a": entry("F4", (3,), (0, 2))}, 2),
    "data after the last": file({"a": entry()}, 9),
    "cut off": file({"a": entry()}, 7),
}
# What the format forbids (duplicate keys are disallowed) and the library lets pass.
STRICTER = {
    "a tensor twice": file(ONE[:-1] + b"," + ONE[1:]),
    "a key of the metadata twice": file(b'{"__metadata__":{"x":"1","x":"2"},' + ONE[1:]),
    "a tensor as a list": file(b'{"a":["F32",[2],[0,8]]}'),
    "a dtype as an object": file({"a": entry({"F32": None})}),
}


def sound(data: bytes) -> bool:
    """Whether the linter would call a file of this content sound."""
    try:
        header = parse(lambda offset, length: data[offset : offset + length], "m.safetensors")
    except HeaderError as error:
        assert str(error).isprintable()
        return False
    return not list(header.contradictions()) and header.end == len(data)


def test_the_sizes_of_dtypes_are_in_their_names():
    """The first number of a name, in bits; BOOL has a byte. There is none twice, and none else."""
    named = {name: int(re.search(r"\d+", name)[0]) for name in ITEM_BITS if name != "BOOL"}
    assert {**named, "BOOL": 8} == ITEM_BITS
    assert len(ITEM_BITS) == 22


@pytest.mark.parametrize("data", [pytest.param(d, id=n) for n, d in SOUND.items()])
def test_sound(data):
    assert sound(data)


@pytest.mark.parametrize(
    "data", [pytest.param(d, id=n) for n, d in {**REFUSED, **STRICTER}.items()]
)
def test_refused(data):
    assert not sound(data)


def test_the_library_agrees():
    library = pytest.importorskip("safetensors")

    def loads(data: bytes) -> bool:
        try:
            library.deserialize(data)
        except library.SafetensorError:
            return False
        return True

    assert {name for name, data in SOUND.items() if not loads(data)} == set()
    assert {name for name, data in REFUSED.items() if loads(data)} == set()


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
numbers = st.integers(0, 40) | scalars
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(ITEM_BITS)) | scalars,
        "shape": st.lists(numbers, max_size=3) | anything,
        "data_offsets": st.lists(numbers, max_size=3) | anything,
        "more": anything,
    },
)
headers = st.dictionaries(
    st.text(max_size=6) | st.just("__metadata__"), entries | anything, max_size=5
)
bodies = headers.map(lambda h: json.dumps(h, ensure_ascii=False).encode(errors="surrogatepass"))


@settings(max_examples=examples(500))
@given(bodies | st.binary(max_size=80), st.integers(0, 64), st.none() | st.binary(max_size=12))
def test_any_header_is_sound_or_refused_as_by_the_library(raw, length, instead):
    data = file(raw, length) if instead is None else instead + raw
    with bounded():
        verdict = sound(data)
    try:
        import safetensors
    except ImportError:
        return
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        assert not verdict
