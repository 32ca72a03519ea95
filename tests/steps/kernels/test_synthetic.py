"""The synthetic checkpoint against real writers: the rehearsal's, in each of its formats."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from runbook.steps.checkpoint.checkpoint import open_folder
from runbook.steps.checkpoint.lint import lint
from runbook.steps.checkpoint.targets import Target
from runbook.steps.kernels.shorten import least_layers, shortened
from runbook.steps.kernels.synthetic import write
from runbook.steps.kernels.tensors import UnknownQuantization, shards
from tests.steps.checkpoint.drafts import dspark, target_nvfp4

NUMBERS = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
}


def described(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (t.dtype, t.shape) for name, t in open_folder(folder).tensors.items()}


@pytest.mark.parametrize("variant, form", [("v4", "seed"), ("v4", "native"), ("v3", "seed")])
def test_names_dtypes_and_shapes_are_those_of_the_original(
    tmp_path: Path, rehearsal: Any, variant: Any, form: Any
) -> None:
    original, out = rehearsal(variant, form), tmp_path / "synthetic"
    layers = json.loads((original / "config.json").read_text())["num_hidden_layers"]

    made = write(original, out, layers)

    assert described(out) == described(original)
    assert made.tensors == len(described(out))
    assert (out / "tokenizer.json").read_bytes() == (original / "tokenizer.json").read_bytes()
    assert [f for f in lint(out, Target("0.33.0", "0.33.0")) if f.severity == "error"] == []


@pytest.mark.parametrize("made", [dspark, target_nvfp4, partial(target_nvfp4, draft=True)])
def test_drafts_and_experts_of_each_format(tmp_path: Path, made: Any) -> None:
    original = made()
    original.write(tmp_path / "original")
    layers = original.config["num_hidden_layers"]
    write(tmp_path / "original", tmp_path / "out", layers)

    here, there = described(tmp_path / "original"), described(tmp_path / "out")
    assert {name: shape for name, (_, shape) in here.items()} == {
        name: shape for name, (_, shape) in there.items()
    }
    stored = {n for n, (dtype, _) in here.items() if dtype in ("I8", "U8", "F8_E4M3", "F8_E8M0")}
    assert all(here[name] == there[name] for name in stored) and stored
    found = lint(tmp_path / "out", Target("0.33.0", "0.33.0-nvfp4"))
    assert [f.id for f in found if f.severity != "info"] == []


def test_every_number_is_finite(tmp_path: Path, rehearsal: Any) -> None:
    original = rehearsal("v4")
    write(original, tmp_path / "out", 3)
    checkpoint = open_folder(tmp_path / "out")
    for tensor in checkpoint.tensors.values():
        raw = checkpoint.read(tensor)
        assert raw is not None
        if tensor.dtype in NUMBERS:
            values = np.frombuffer(raw, NUMBERS[tensor.dtype]).astype(np.float64)
            assert np.isfinite(values).all(), tensor.name
            assert np.abs(values).max() < 10, tensor.name


def test_fewer_layers_keep_the_widths_and_the_head(tmp_path: Path, rehearsal: Any) -> None:
    original = rehearsal("v4")
    whole = described(original)

    write(original, tmp_path / "out", 3)

    short = described(tmp_path / "out")
    assert short == {n: d for n, d in whole.items() if not n.startswith("layers.3.")}


def test_an_interrupted_write_leaves_nothing_in_place(tmp_path: Path, rehearsal: Any) -> None:
    original = rehearsal("v4")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(original, tmp_path / "out", 2, report=stop)
    assert not (tmp_path / "out").exists()
    write(original, tmp_path / "out", 2)
    assert open_folder(tmp_path / "out").unreadable == []
    assert not (tmp_path / "out.partial").exists()


V4 = {
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0],
}


@pytest.mark.parametrize(
    "config, least",
    [
        (V4, 5),
        (V4 | {"num_hash_layers": 0}, 4),
        ({"num_hidden_layers": 61, "first_k_dense_replace": 3}, 4),
        ({"num_hidden_layers": 2}, 1),
    ],
)
def test_the_fewest_layers_hold_each_kind(config: dict[str, Any], least: int) -> None:
    assert least_layers(config) == least


def test_speculative_blocks_are_renumbered() -> None:
    config = V4 | {
        "dspark_target_layer_ids": [40, 41, 42],
        "quantization_config": {
            "ignore": ["lm_head", "model.layers.43.e_proj", "model.layers.4.ffn"],
            "config_groups": {"group_0": {"targets": [r"re:.*layers\.43\.attn\.wq_a$"]}},
        },
    }
    short = shortened(config, 6)
    assert short["compress_ratios"] == [0, 0, 4, 128, 4, 128, 0]
    assert short["dspark_target_layer_ids"] == [3, 4, 5]
    quantization = short["quantization_config"]
    assert quantization["ignore"] == ["lm_head", "model.layers.6.e_proj", "model.layers.4.ffn"]
    assert quantization["config_groups"]["group_0"]["targets"] == [r"re:.*layers\.6\.attn\.wq_a$"]
    assert config["num_hidden_layers"] == 43


@pytest.mark.parametrize("layers", [0, 44])
def test_more_layers_than_the_model_has_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match="1 to 43 layers"):
        shortened(V4, layers)


def test_an_unknown_quantisation_is_named(rehearsal: Any) -> None:
    config = json.loads((rehearsal("v4") / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    with pytest.raises(UnknownQuantization, match="awq"):
        shards(config)
