"""Rows streamed into moments: what the same rows give as tokens, and the plugin that streams."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path

import pytest
import torch
from mtp_retrofit import calibration as captures
from mtp_retrofit import stream as streaming
from mtp_retrofit.calibration import Calibration
from mtp_retrofit.hessian import Moments, PackedMoments, packed_length
from mtp_retrofit.source import Experts, InputError
from mtp_retrofit.stream import Stream
from safetensors.torch import save_file

D, F, EXPERTS, TOKENS, TOP = 200, 72, 4, 3000, 2
"""Widths that are no multiples of anything."""
PREFIX = "model.layers.3.mlp.experts"
LEAVES = ("gate_proj", "up_proj", "down_proj")
CPU = torch.device("cpu")
LIMIT = 1.5


@pytest.fixture
def experts(tmp_path):
    g = torch.Generator().manual_seed(1)
    tensors = {}
    for e in range(EXPERTS):
        for leaf, shape in zip(LEAVES, ((F, D), (F, D), (D, F)), strict=True):
            w = torch.randn(shape, generator=g) * 0.1
            tensors[f"{PREFIX}.{e}.{leaf}.weight"] = w.bfloat16()
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"hidden_size": D}))
    return Experts.open(folder, PREFIX)


def rows(count: int = TOKENS, idle: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, experts and weights; expert 0 gets half of all rows, expert `idle` none."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(count, D, generator=g).bfloat16()
    scores = torch.rand(count, EXPERTS, generator=g)
    scores[:, 0] += 0.4
    scores[:, idle] = -1
    weights, ids = scores.topk(TOP)
    return x, ids.int(), weights.float()


def passes(taken: tuple[torch.Tensor, ...], seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """The rows as forward passes of 1 to 60."""
    draw = random.Random(seed)
    sizes, left = [], len(taken[0])
    while left:
        sizes.append(min(left, draw.randint(1, 60)))
        left -= sizes[-1]
    return list(zip(*(t.split(sizes) for t in taken), strict=True))


def as_tokens(folder: Path, taken: tuple[torch.Tensor, ...]) -> Calibration:
    folder.mkdir()
    names = ("x", "experts", "weights")
    save_file(dict(zip(names, taken, strict=True)), folder / "tokens-0.safetensors")
    about = {"kind": "tokens", "experts": EXPERTS, "limit": LIMIT}
    (folder / "calibration.json").write_text(json.dumps(about))
    return Calibration(folder, CPU)


def as_moments(folder: Path) -> Calibration:
    about = {"kind": "moments", "experts": EXPERTS, "limit": LIMIT}
    (folder / "calibration.json").write_text(json.dumps(about))
    return Calibration(folder, CPU)


@pytest.mark.parametrize("most", [256, 10, 1])
def test_the_same_as_from_tokens(most, experts, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 300)
    monkeypatch.setattr(streaming, "GATHER", 100)
    monkeypatch.setattr(streaming, "HELD_MOST", most)
    monkeypatch.setattr(captures, "HELD_MOST", most)
    taken = rows()
    folder = tmp_path / "moments"
    folder.mkdir()
    stream = Stream(experts, LIMIT, folder)
    for part in passes(taken):
        stream.add(*part)
    written = []
    counts = stream.finish(written.append)
    assert counts == torch.bincount(taken[1].flatten(), minlength=EXPERTS).tolist()
    assert written == list(range(EXPERTS)) and stream.tokens == TOKENS
    tokens, moments = as_tokens(tmp_path / "tokens", taken), as_moments(folder)
    assert moments.counts()[3] == tokens.counts()[3] == 0
    held = 0
    for e in range(EXPERTS):
        weights = experts.weights(e)
        want, found = tokens.inputs(e, weights), moments.inputs(e, weights)
        for side, precision in (("into", 1e-6), ("out", 1e-4)):
            a, b = getattr(want, side), getattr(found, side)
            assert a.count == b.count
            assert float(b.fourth) == pytest.approx(float(a.fourth), rel=precision)
            h = b.hessian()
            torch.testing.assert_close(h, h.T)
            assert float((h - a.hessian()).norm()) <= precision * float(a.hessian().norm())
        assert torch.equal(found.held, want.held)
        torch.testing.assert_close(found.held_out, want.held_out, rtol=1e-2, atol=1e-3)
        assert len(found.held) <= most and found.into.count + len(found.held) == counts[e]
        held += len(found.held)
    assert held > 0


def test_rows_are_grouped_and_memory_is_bounded(experts, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 300)
    monkeypatch.setattr(streaming, "GATHER", 100)
    added = []
    plain = PackedMoments.add
    monkeypatch.setattr(PackedMoments, "add", lambda s, x: (added.append(len(x)), plain(s, x)))
    stream = Stream(experts, LIMIT, tmp_path)
    most = 0
    for part in passes(rows()):
        stream.add(*part)
        most = max(most, *(t.waiting for t in stream._taken))
    assert most < 300 + 160  # an expert's own, and those of one group
    assert min(added) >= 300
    stream.finish()
    assert not any(t.rows or t.held or t.moments for t in stream._taken)


def test_packed_moments_are_the_moments():
    x = torch.randn(700, D).bfloat16()
    plain, packed = Moments.empty(D), PackedMoments.empty(D)
    precision = torch.get_float32_matmul_precision()
    for part in x.split(123):
        plain.add(part)
        packed.add(part)
        assert torch.get_float32_matmul_precision() == precision
    assert packed.second.shape == (packed_length(D),)
    assert packed_length(4096) == 4096**2 * 9 // 16
    torch.testing.assert_close(packed.hessian(), plain.hessian(), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        packed.add(x[:, 1:])


@pytest.mark.parametrize("where", ["early", "last", "held"])
def test_what_is_not_finite_is_named(where, experts, tmp_path):
    x, ids, weights = rows()
    mine = (ids == 2).any(1).nonzero().flatten()
    x[mine[{"early": 0, "last": -1, "held": 15}[where]], 5] = float("inf")
    stream = Stream(experts, LIMIT, tmp_path)
    with pytest.raises(InputError, match=rf"{PREFIX}\.\d\.gate_proj: they hold NaN or infinity"):
        for part in passes((x, ids, weights)):
            stream.add(*part)
        stream.finish()


@pytest.mark.parametrize("what", ["expert", "width"])
def test_rows_of_another_model_are_refused(what, experts, tmp_path):
    x, ids, weights = rows(500)
    if what == "expert":
        ids[7, 1] = EXPERTS
    else:
        x = x[:, : D // 2]
    stream = Stream(experts, LIMIT, tmp_path)
    stream.add(x, ids, weights)
    with pytest.raises(
        InputError, match="expert" if what == "expert" else rf"{PREFIX}.0.gate_proj"
    ):
        stream.finish()


def test_damaged_moments_are_named(experts, tmp_path):
    stream = Stream(experts, LIMIT, tmp_path)
    stream.add(*rows(200))
    stream.finish()
    path = tmp_path / "moments-1.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="moments-1"):
        as_moments(tmp_path).counts()
    save_file({"in.second": torch.zeros(3)}, path, {"count": "1"})
    with pytest.raises(InputError, match="moments-1"):
        as_moments(tmp_path).inputs(1, experts.weights(1))
    path.unlink()
    with pytest.raises(InputError, match="moments-1"):
        as_moments(tmp_path).counts()


# The plugin


def plugin():
    path = Path(__file__).parents[4] / "steps/mtp/capture/plugin.py"
    spec = importlib.util.spec_from_file_location("runbook_capture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorder(folder: Path, experts: Experts, **settings):
    module = plugin()
    module.POLL = 0.01
    folder.mkdir()
    given = {"checkpoint": str(experts.folder), "prefix": PREFIX, "limit": LIMIT, **settings}
    return module, module.Moments(folder, given)


def wait_for(*paths: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in paths:
            if path.exists():
                return path
        time.sleep(0.01)
    raise AssertionError(f"none of {paths}")


@pytest.mark.parametrize("slow", [0.0, 0.02])
def test_the_plugin_loses_no_row(slow, experts, tmp_path, monkeypatch):
    plain = Stream.add
    monkeypatch.setattr(Stream, "add", lambda s, *part: (time.sleep(slow), plain(s, *part)))
    taken = rows()
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        module, made = recorder(folder, experts)
        made.write(*(t[:5] for t in taken))  # warm-up
        assert list(folder.iterdir()) == []
        (folder / module.ON).touch()
        buffer = [t.clone() for t in taken]
        for part in passes(tuple(buffer), attempt):
            made.write(*part)
            for tensor in part:
                tensor.zero_()  # the model uses its memory again
        (folder / module.ON).unlink()
        done = wait_for(folder / module.DONE, folder / module.FAILED)
        assert json.loads(done.read_text())["tokens"] == TOKENS
        made.write(*(t[:5] for t in taken))  # too late
        moments, tokens = as_moments(folder), as_tokens(tmp_path / f"t{attempt}", taken)
        for e in range(EXPERTS):
            weights = experts.weights(e)
            want, found = tokens.inputs(e, weights), moments.inputs(e, weights)
            torch.testing.assert_close(found.into.hessian(), want.into.hessian())
            assert torch.equal(found.held, want.held)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere is no checkpoint"),
        ({"prefix": "mtp.0"}, "no complete set of experts mtp.0"),
        ({"limit": "none"}, "TypeError"),
    ],
)
def test_the_plugin_says_what_is_wrong_and_does_not_hold_up_the_model(
    settings, why, experts, tmp_path
):
    module, made = recorder(tmp_path / "raw", experts, **settings)
    (tmp_path / "raw" / module.ON).touch()
    parts = passes(rows())
    for part in parts:
        made.write(*part)
    (tmp_path / "raw" / module.ON).unlink()
    failed = wait_for(tmp_path / "raw" / module.FAILED, tmp_path / "raw" / module.DONE)
    assert failed.name == module.FAILED
    assert why in failed.read_text()
    made.write(*parts[0])
