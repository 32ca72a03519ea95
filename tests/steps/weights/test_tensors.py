"""Defects of safetensors files, each named with its file."""

from __future__ import annotations

import json
import struct

import pytest

from runbook.steps.weights import tensors
from tests.steps.common.hub.hub import write_repository

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def model(tmp_path):
    write_repository(tmp_path, sizes=(1000, 2000, 3000))
    return tmp_path


def found(model):
    names = [p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()]
    return {reason.code: reason.message for reason in tensors.problems(model, names)}


def edit_header(path, change):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def first(header):
    return next(iter(header.values()))


def test_sound_model_has_no_problem(model):
    assert found(model) == {}


def test_truncated_shard(model):
    data = (model / SHARD).read_bytes()
    (model / SHARD).write_bytes(data[:-1])
    assert found(model)["bad_length"].startswith(f"{SHARD} is truncated: {len(data) - 1} bytes")


def test_shard_that_ends_in_its_header(model):
    (model / SHARD).write_bytes((model / SHARD).read_bytes()[:20])
    assert SHARD in found(model)["bad_header"]


def test_page_of_html_in_place_of_a_shard(model):
    (model / SHARD).write_text("<html>Please log in to this network</html>")
    assert SHARD in found(model)["bad_header"]


def test_missing_shard(model):
    (model / SHARD).unlink()
    assert f"2 tensors in {SHARD}" in found(model)["missing_shard"]


def test_missing_tensor(model):
    edit_header(model / SHARD, lambda header: header.update(other=header.pop("layers.2.a.weight")))
    assert f"{SHARD} lacks layers.2.a.weight" in found(model)["missing_tensor"]


def test_unknown_dtype(model):
    edit_header(model / SHARD, lambda header: first(header).update(dtype="F7"))
    assert "'F7', which safetensors does not know" in found(model)["bad_header"]


def test_shape_and_offsets_that_disagree(model):
    edit_header(model / SHARD, lambda header: first(header).update(shape=[3]))
    assert "do not fit its shape" in found(model)["bad_offsets"]


def test_index_that_is_none(model):
    (model / "model.safetensors.index.json").write_text("[]")
    assert "is no index" in found(model)["bad_index"]


@pytest.mark.parametrize(
    "index",
    [
        b"", b"{", b"\xff", b"[" * 100_000, b"null", b"[]", b"{}", b'{"weight_map": []}',
        b'{"weight_map": 7}', b'{"weight_map": {"a": null, "b": "c"}}',
        b'{"weight_map": {"a": [], "b": 1}}',
    ],
)  # fmt: skip
def test_an_index_of_any_content(model, index):
    (model / "model.safetensors.index.json").write_bytes(index)
    problems = found(model)
    assert "model.safetensors.index.json is no index" in problems["bad_index"]
    assert len(problems["bad_index"]) < 300


@pytest.mark.parametrize("name", ["\x1b[2J", "x" * 100_000, "{x}", "\ud800"])
def test_an_index_with_odd_names(model, name):
    path = model / "model.safetensors.index.json"
    placed = {"weight_map": {name: SHARD, "b": name}}
    path.write_text(json.dumps(placed))
    problems = found(model)
    assert problems.keys() == {"missing_tensor", "missing_shard"}
    for message in problems.values():
        assert len(message) < 300
        assert message.isprintable()
