"""The linter on planted defects, one by one, and on sound checkpoints."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
from runbook.steps.checkpoint.lint import examine, lint, report, subject
from runbook.steps.checkpoint.lint.identity import KNOWN, LATER_V3, LATER_V4
from runbook.steps.checkpoint.lint.rules import RULES
from runbook.steps.checkpoint.lint.scales import Sample
from runbook.steps.mtp.mend import MENDS
from tests.steps.checkpoint.cases import CASES, MODELOPT_FILE, MODELOPT_MAKE, SOUND
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import CPU, DEFECTS, FORK, V22, V33, clean

ALL = {**DEFECTS, **CASES}


def test_every_rule_has_a_defect_and_every_mend_a_rule():
    assert set(RULES) == {d.finding for d in ALL.values()}
    assert set(MENDS) <= set(RULES)


@pytest.mark.parametrize("target", [V33, V22, CPU, FORK])
@pytest.mark.parametrize(
    "make",
    [clean, lambda: tiny.v4("native"), tiny.v3, lambda: tiny.v3("bf16")],
    ids=["v4 seed", "v4 native", "v3 seed", "v3 bf16"],
)
def test_finds_no_fault_in_a_sound_checkpoint(make, target, tmp_path):
    found = lint(make().write(tmp_path / "checkpoint"), target)
    assert {f.id for f in found if f.severity == "error"} == set()
    assert {f.id for f in found if f.severity == "warning"} <= {"swiglu_clamp"}


@pytest.mark.parametrize("name", SOUND)
def test_finds_no_fault_in_other_formats(name, tmp_path):
    make, target = SOUND[name]
    found = lint(make().write(tmp_path / "checkpoint"), target)
    assert {f.id for f in found if f.severity != "info"} == set()


def test_modelopt_says_in_a_file_of_its_own_what_is_quantised(tmp_path):
    folder = MODELOPT_MAKE().write(tmp_path / "c")
    assert {f.id for f in lint(folder, V33) if f.severity == "error"} == {"quantization_absent"}
    MODELOPT_FILE(folder)
    assert {f.id for f in lint(folder, V33) if f.severity != "info"} == set()


def test_a_defect_causes_no_second_error(tmp_path):
    made = clean()
    made.pop("mtp.0.enorm.weight")
    found = lint(made.write(tmp_path / "c"), V33)
    assert [f.id for f in found if f.severity == "error"] == ["mtp_incomplete"]
    assert found[0].tensors == ("mtp.0.enorm.weight",)


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        lint(tmp_path, V33)


def test_plain_form_is_json_and_bounded(tmp_path):
    finding = lint(tiny.v4(mtp=False).write(tmp_path / "c"), V33)[1]
    plain = finding.plain(shown=2)
    assert plain["tensor_count"] == 10
    assert len(plain["tensors"]) == 2


def test_needs_no_torch_and_no_numpy(tmp_path):
    folder = clean().write(tmp_path / "c")
    code = (
        "import sys; from pathlib import Path; from runbook.steps.checkpoint.lint import lint;"
        "from runbook.steps.checkpoint.targets import Target;"
        f"lint(Path({str(folder)!r}), Target('0.33.0'));"
        "assert not {'torch', 'numpy', 'pydantic', 'httpx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("config", "tensor", "told"),
    [
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
            "model.layers.0.self_attn.q_proj.weight",
            "architecture LlamaForCausalLM, llama; Llama-style tensors",
        ),
        (
            {"model_type": "phi3"},
            "layers.31.self_attn.qkv_proj.weight",
            "architecture phi3; Llama-style, fused tensors",
        ),
        (
            {"architectures": ["DeepseekV41ForCausalLM"], "model_type": "deepseek_v41"},
            "layers.0.attn.wkv.weight",
            f"architecture DeepseekV41ForCausalLM, deepseek_v41; {LATER_V4}",
        ),
        (
            {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"},
            "model.layers.0.self_attn.q_a_proj.weight",
            f"architecture DeepseekV32ForCausalLM, deepseek_v32; {LATER_V3}",
        ),
        (
            {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v41"},
            "x",
            f"architecture DeepseekV32ForCausalLM, deepseek_v41; {LATER_V4}",
        ),
        (
            {"model_type": "gpt2"},
            "transformer.h.0.attn.c_attn.weight",
            "architecture gpt2; GPT-2-style tensors",
        ),
        ({}, "x", "architecture not named"),
        ({"model_type": "a" * 121}, "x", f"architecture {'a' * 120}"),
    ],
)
def test_says_what_it_is_that_is_not_known(config, tensor, told, tmp_path):
    made = tiny.Tiny(config, {tensor: np.zeros(2, "f4")}, {tensor: "model.safetensors"})
    found = lint(made.write(tmp_path / "c"), V33)
    assert [f.id for f in found] == ["architecture_unknown"]
    assert found[0].detail == f"{told}; 1 tensors in 1 files; {KNOWN}"


def test_what_is_brought_in_code_is_named_with_its_digest(tmp_path, monkeypatch):
    folder = clean().write(tmp_path / "c")
    (folder / "modeling_x.py").write_bytes(b"import os\n")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.Fast"]}}')
    found = next(f for f in lint(folder, V33) if f.id == "custom_code")
    digest = hashlib.sha256(b"import os\n").hexdigest()
    assert found.tensors == (f"modeling_x.py sha256:{digest}",)
    assert found.detail == "1 files of Python; auto_map names t.Fast"
    monkeypatch.setattr("runbook.steps.checkpoint.code.LARGEST", 9)
    found = next(f for f in lint(folder, V33) if f.id == "custom_code")
    assert found.tensors == ("modeling_x.py sha256:unread",), "too large to be read"


def test_says_which_share_of_the_scales_was_looked_at(tmp_path, monkeypatch):
    folder = clean().write(tmp_path / "c")
    whole, part, remote = Sample(), Sample(), Sample()
    lint(folder, V33, whole)
    assert whole.tensors == whole.of > 10 and whole.read == whole.bytes
    monkeypatch.setattr("runbook.steps.checkpoint.lint.scales.MOST_TENSORS", 7)
    monkeypatch.setattr("runbook.steps.checkpoint.lint.scales.BUDGET", 1000)
    lint(folder, V33, part)
    assert 1 <= part.tensors <= 7 and 0 < part.read < part.bytes == whole.bytes
    assert f"{part.tensors} of {part.of} scales" in report.text([], part)
    about = subject(open_folder(folder))
    about.checkpoint.local = False
    examine(about, V33, remote)
    assert remote.of == whole.of and remote.tensors == remote.read == 0
    assert "no value" in report.text([], remote)
