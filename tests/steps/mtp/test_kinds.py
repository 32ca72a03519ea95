"""The steps of the book mtp-head."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runbook.planning.context import StepContext
from runbook.protocol import StepFailure
from runbook.steps.checkpoint.lint import lint
from runbook.steps.mtp.assemble import Assemble
from runbook.steps.mtp.quantise import Quantise
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import V33
from tests.steps.mtp.test_assemble import sources


def context(step, workspace: Path, **values) -> StepContext:
    inputs = step.Inputs(**values).model_dump()
    workspace.mkdir(exist_ok=True)
    with (workspace / "log").open("a") as log:
        seen: list[tuple] = []
        made = StepContext(
            "s",
            SimpleNamespace(**inputs),
            workspace,
            out=log,
            on_progress=lambda told: seen.append(tuple(told.values())[:4]),
        )
    made.out = sys.stderr
    made.seen = seen
    return made


def assembly(tmp_path: Path, **values) -> StepContext:
    base, upstream, experts = sources(tmp_path)
    given = {"base": str(base), "upstream": str(upstream), "quantised": str(experts)}
    return context(Assemble(), tmp_path / "w", **{**given, "target": V33.release, **values})


def test_assemble_holds_after_apply_and_tells_changes(tmp_path):
    ctx = assembly(tmp_path)
    step = Assemble()
    assert step.check(ctx).reasons[0].code == "not_made"
    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok
    assert step.Outputs(**check.outputs).findings == 0
    assert check.outputs["path"] == str(tmp_path / "w/assembled")
    assert ctx.seen[-1][0] == ctx.seen[-1][1]
    (tmp_path / "base/config.json").write_text((tmp_path / "base/config.json").read_text() + " ")
    assert step.check(ctx).reasons[0].code == "source_changed"
    step.apply(ctx)
    (tmp_path / "w/assembled/config.json").unlink()
    assert step.check(ctx).reasons[0].code == "result_changed"
    step.undo(ctx)
    step.undo(ctx)
    assert not (tmp_path / "w/assembled").exists()


def test_assemble_names_what_is_missing(tmp_path):
    ctx = assembly(tmp_path)
    (tmp_path / "quantised/expert-00001.safetensors").unlink()
    with pytest.raises(StepFailure) as failure:
        Assemble().apply(ctx)
    assert failure.value.code == "assembly_failed"
    assert "mtp.0.ffn.experts.1.w1" in failure.value.cause
    assert not Assemble().check(ctx).ok


@pytest.mark.parametrize("values", [{"target": "0.1"}, {"destination": "../out"}])
def test_assemble_refuses(values, tmp_path):
    ctx = assembly(tmp_path, **values)
    with pytest.raises(StepFailure) as failure:
        Assemble().apply(ctx)
    assert failure.value.code in ("unknown_target", "bad_destination")


def quantisation(tmp_path: Path, python: str) -> StepContext:
    upstream = tiny.v4("native").write(tmp_path / "upstream")
    return context(
        Quantise(),
        tmp_path / "w",
        python=python,
        checkpoint=str(upstream),
        calibration=str(tmp_path / "captures"),
        device="cpu",
        threshold=1,
    )


def test_quantise_without_torch_says_so(tmp_path):
    ctx = quantisation(tmp_path, sys.executable)
    ctx.uses = "mtp-quantise"
    with pytest.raises(StepFailure) as failure:
        Quantise().apply(ctx)
    assert failure.value.code == "quantise_failed"
    assert "torch" in failure.value.cause
    assert not Quantise().check(ctx).ok


CAPTURE = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
folder = Path(sys.argv[1])
folder.mkdir()
torch.manual_seed(0)
weights, experts = torch.rand(400, 4).topk(2)
x = torch.randn(400, 256).bfloat16()
save_file({"x": x, "experts": experts.int(), "weights": weights}, folder / "tokens-0.safetensors")
about = {"kind": "tokens", "experts": 4, "limit": 10.0}
(folder / "calibration.json").write_text(json.dumps(about))
"""


@pytest.mark.e2e
def test_quantise_then_assemble(torch_python, tmp_path):
    ctx = quantisation(tmp_path, torch_python)
    with pytest.raises(StepFailure, match="quantised") as failure:
        Quantise().apply(ctx)
    assert "holds no calibration" in failure.value.cause
    subprocess.run([torch_python, "-c", CAPTURE, str(tmp_path / "captures")], check=True)
    Quantise().apply(ctx)
    check = Quantise().check(ctx)
    made = Quantise.Outputs(**check.outputs)
    assert made.tensors == 12 and made.rounded_to_nearest == 0
    assert made.error < made.error_rtn
    assert any(message.endswith("s left") for *_, message in ctx.seen)
    base = tiny.v4(mtp=False, compressor="bf16").write(tmp_path / "base")
    joined = context(
        Assemble(),
        tmp_path / "w",
        base=str(base),
        upstream=str(tmp_path / "upstream"),
        quantised=made.path,
        target=V33.release,
    )
    Assemble().apply(joined)
    path = Assemble().check(joined).outputs["path"]
    assert {f.id for f in lint(Path(path), V33)} == {"mtp_aliases"}
