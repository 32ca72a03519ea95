"""What the tables of faults leave open: what else is found beside a fault, and where it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from runbook.steps.checkpoint import hub
from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
from runbook.steps.checkpoint.lint import Finding, lint, rules
from runbook.steps.checkpoint.lint.rules import Rule
from runbook.steps.checkpoint.lint.scales import Sample
from runbook.steps.checkpoint.lint.tensors import renamed
from runbook.steps.checkpoint.targets import RELEASES, Target
from tests.steps.checkpoint.cases import CASES
from tests.steps.checkpoint.drafts import dspark
from tests.steps.checkpoint.file_cases import listing
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import CPU, DEFECTS, FORK, V33, Defect, clean

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


def test_the_same_weights_in_another_format_may_lie_beside(tmp_path):
    folder = clean().write(tmp_path / "c")
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert {f.severity for f in lint(folder, V33)} == {"info"}


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


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("dspark_noise_token_id", 0, None),
        ("dspark_noise_token_id", True, "dspark_noise_id"),
        ("dspark_noise_token_id", 1.0, "dspark_noise_id"),
        ("dspark_block_size", 1, None),
        ("dspark_block_size", 0, "dspark_field"),
        ("dspark_block_size", 5.0, "dspark_field"),
        ("dspark_target_layer_ids", [3, 2, 1], "dspark_layer_ids"),
        ("dspark_target_layer_ids", [0, 2, 3], "dspark_layers_other"),
        ("compress_ratios", [*tiny.RATIOS, 0, 0, 0, 0], "dspark_field"),
    ],
)
def test_what_the_config_of_a_draft_may_say(field, value, rule, tmp_path):
    made = dspark()
    made.config[field] = value
    ids = {f.id for f in lint(made.write(tmp_path / "c"), V33) if f.severity != "info"}
    assert ids == ({rule} if rule else set())


def test_of_many_stages_the_first_are_named(tmp_path):
    made = dspark()
    for stage in range(3, 12):
        made.tensors[f"mtp.{stage}.attn_norm.weight"] = np.ones(tiny.HIDDEN, tiny.BF16)
    said = next(f.detail for f in lint(made.write(tmp_path / "c"), V33) if f.id == "dspark_stages")
    assert said.startswith("there are tensors of stage 0, 1, 2, 3, 4, 5, 6, 7; vLLM builds 3")


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("layers.1.attn_hc.fn", "layers.1.hc_attn_fn"),
        ("mtp.0.ffn_hc.scale", "mtp.0.hc_ffn_scale"),
        ("hc_head.hc_base", "hc_head_base"),
        ("mtp.0.hc_head.hc_fn", "mtp.0.hc_head_fn"),
        ("layers.1.ffn.gate.e_score_correction_bias", "layers.1.ffn.gate.bias"),
        ("layers.1.ffn.gate.bias", None),
        ("layers.1.attn_hc.fn.weight", None),
        ("my_hc_head.hc_fn", None),
    ],
)
def test_names_of_transformers(name, upstream):
    assert renamed(name) == upstream


def test_the_severity_of_a_rule_is_that_of_the_first_quirk_that_a_target_has():
    both = Rule("c", "r", "info", {"swiglu_unclamped": "warning", "dspark_absent": "error"})
    assert both.severity_for(CPU) == "warning"
    assert both.severity_for(V33) == "info"
    assert both.by_target().keys() == Rule("c", "r").by_target().keys() >= set(RELEASES)
    assert both.by_target()["0.32.0-cpu"] == "warning" and both.by_target()["0.33.0"] == "info"
    assert set(Rule("c", "r").by_target().values()) == {"error"}


def test_every_rule_of_the_file_is_known_and_no_other():
    text = Path(rules.__file__).with_name("rules.yaml").read_text(encoding="utf-8")
    said = yaml.safe_load(text)
    found = rules._rules()
    assert found == rules.RULES and found.keys() == said.keys()
    for name, values in said.items():
        expected = {"severity": "error", "quirks": {}, **values}
        assert vars(found[name]) == expected


def test_a_folder_may_be_named_by_a_text_and_all_else_is_a_repository(tmp_path, monkeypatch):
    made = clean()
    made.pop("mtp.0.enorm.weight")
    folder = made.write(tmp_path / "c")
    asked = []
    monkeypatch.setattr(hub, "open_repository", lambda name: asked.append(name) or found)
    found = open_folder(folder)
    local, remote = Sample(), Sample()
    here = lint(str(folder), V33, local)
    assert [f.id for f in here if f.severity == "error"] == ["mtp_incomplete"] and asked == []
    assert lint("org/name@main", V33, remote) == here and asked == ["org/name@main"]
    assert remote == local and local.of > 0
    with pytest.raises(CheckpointError):
        lint(tmp_path / "none", V33)


def test_the_gravest_comes_first(tmp_path):
    made = dspark()
    made.pop("mtp.2.confidence_head.proj.weight")
    made.tensors["more"] = np.ones(1, "f4")
    made.tensors[SCALE.removesuffix(".weight_scale") + ".scale"][...] = np.nan
    order = [f.severity for f in lint(made.write(tmp_path / "c"), CPU)]
    assert order == sorted(order, key=["error", "warning", "info"].index)
    assert len(set(order)) == 3 and order.count("info") > 1


def test_no_fault_where_the_target_has_none(tmp_path):
    """`none` is no severity that is told."""
    told = {f.id for f in lint(tiny.v4().write(tmp_path / "c"), FORK)}
    assert "compressor_quantised" not in told
    assert "compressor_quantised" in {f.id for f in lint(tmp_path / "c", Target("0.33.0"))}


@pytest.mark.parametrize(("total", "told"), [(0, False), (None, False), (1, True)])
def test_what_an_index_says_of_the_size(total, told, tmp_path):
    folder = clean().write(tmp_path / "c")
    listing(metadata={} if total is None else {"total_size": total})(folder)
    assert ("index_size" in {f.id for f in lint(folder, V33)}) == told
