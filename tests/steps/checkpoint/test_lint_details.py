"""What the tables of faults leave open: what else is found beside a fault, and where it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runbook.steps.checkpoint.lint import Finding, lint
from tests.steps.checkpoint.cases import CASES
from tests.steps.checkpoint.drafts import dspark
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import DEFECTS, V33, Defect, clean

SCALE = "layers.1.attn.wkv.weight_scale"
DRAFT_SCALE = "mtp.0.attn.wkv.weight_scale"


def found(defect: Defect, folder: Path) -> dict[str, Finding]:
    made = defect.make()
    defect.plant(made)
    made.write(folder)
    defect.damage(folder)
    return {f.id: f for f in lint(folder, V33) if f.severity == "error"}


@pytest.mark.parametrize(
    ("defect", "error"),
    [
        (CASES["no stage"], "mtp_stripped"),
        (CASES["an expert missing"], "dspark_incomplete"),
        (CASES["layer ids counted from 1"], "dspark_layer_ids"),
        (CASES["a Markov table turned"], "tensor_shape"),
        (CASES["an NVFP4 layer not named"], "quant_unmatched"),
        (DEFECTS["two mtp blocks declared, one there"], "mtp_overdeclared"),
        (DEFECTS["mtp shard not in the index"], "index_lacks"),
        (DEFECTS["no mtp block"], "mtp_stripped"),
    ],
)
def test_one_fault_is_one_error(defect, error, tmp_path):
    others = {"draft_format"}  # of NVFP4 beside the draft's own format, on a stock release
    assert set(found(defect, tmp_path / "c")) - others == {error}


def test_says_of_which_draft_there_is_nothing(tmp_path):
    mtp = found(DEFECTS["no mtp block, but declared"], tmp_path / "a")["mtp_stripped"]
    other = found(CASES["no stage"], tmp_path / "b")["mtp_stripped"]
    assert "num_nextn_predict_layers is 1" in mtp.detail and "DSpark" not in mtp.detail
    assert "DSpark" in other.detail


def test_what_the_index_lacks_is_every_tensor_of_the_model_and_no_other(tmp_path):
    made = clean()
    made.tensors["mtp.0.notes"] = np.zeros(2, "f4")
    made.write(tmp_path / "c")
    DEFECTS["mtp shard not in the index"].damage(tmp_path / "c")
    lacking = next(f for f in lint(tmp_path / "c", V33) if f.id == "index_lacks")
    assert set(lacking.tensors) == {
        n for n in made.tensors if n.startswith("mtp.") and n != "mtp.0.notes"
    }


@pytest.mark.parametrize(("shards", "warned"), [(1, False), (2, True)])
def test_an_index_is_missed_where_there_are_two_files(shards, warned, tmp_path):
    made = clean()
    made.shards = {n: f"{i % shards}.safetensors" for i, n in enumerate(made.tensors)}
    folder = made.write(tmp_path / "c")
    (folder / "model.safetensors.index.json").unlink()
    assert ("index_missing" in {f.id for f in lint(folder, V33)}) == warned


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", tiny.BF16], ids=str)
@pytest.mark.parametrize(
    ("value", "of_the_target", "of_the_draft"),
    [
        (0.5, None, None),
        (0.996, None, None),
        (1.0, None, "scale_range"),
        (118.0, None, "scale_range"),
        (0.0, "scale_zero", "scale_range"),
        (-0.5, "scale_range", "scale_range"),
        (np.inf, "scale_range", "scale_range"),
        (-np.inf, "scale_range", "scale_range"),
        (np.nan, "scale_range", "scale_range"),
    ],
)
def test_values_of_scales(dtype, value, of_the_target, of_the_draft, tmp_path):
    for name, rule in ((SCALE, of_the_target), (DRAFT_SCALE, of_the_draft)):
        made = clean()
        made.tensors[name] = np.array([[0.25, value]]).astype(dtype)
        ids = {f.id for f in lint(made.write(tmp_path / name), V33) if "scale" in f.id}
        assert ids == ({rule} if rule else set())


@pytest.mark.parametrize(
    ("exponent", "of_experts", "of_linears"), [(126, False, False), (127, False, True), (255, 1, 1)]
)
def test_exponents_of_scales(exponent, of_experts, of_linears, tmp_path):
    for name, told in (
        ("mtp.1.ffn.experts.0.w1.scale", of_experts),
        ("mtp.1.attn.wkv.scale", of_linears),
    ):
        made = dspark()
        made.tensors[name] = np.full(made.tensors[name].shape, exponent, "u1").view(tiny.E8M0)
        ids = {f.id for f in lint(made.write(tmp_path / name), V33) if f.severity == "error"}
        assert ids == ({"scale_range"} if told else set())
