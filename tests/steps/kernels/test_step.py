"""The step against a stand-in for vLLM, and a checkpoint that is really written."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from runbook.planning.context import console
from runbook.steps.common import facts
from runbook.steps.common.service import Service
from runbook.steps.kernels import Kernels
from runbook.steps.kernels.models import Inputs, Outputs
from tests.conftest import free_port

pytestmark = pytest.mark.harness

SERVE = Path(__file__).parents[1] / "serve"
READY = (SERVE / "logs" / "ready.log").read_text()
STEP = Kernels()


@pytest.fixture
def bench(tmp_path, monkeypatch, rehearsal):
    vllm = tmp_path / "vllm"
    seen = tmp_path / "seen.json"
    vllm.write_text(
        f'#!/bin/sh\nls "$2" > {tmp_path}/files\necho "$@" > {seen}\n'
        f'exec {sys.executable} {SERVE / "stand_in.py"} "$@"\n'
    )
    vllm.chmod(0o755)
    plan = tmp_path / "plan.json"
    source = rehearsal("v4")
    port = free_port()
    load = [{"index": 0, "used": 4 << 20, "processes": []}]
    monkeypatch.setattr(facts, "gpu_load", lambda: load)
    bench = SimpleNamespace(
        load=load,
        gpus=[{"architecture": "12.0", "index": 0, "uuid": "GPU-a"}],
        workspace=tmp_path / "w",
        folder=tmp_path,
    )

    def behave(**how):
        plan.write_text(json.dumps(how))

    def context(**inputs):
        given = {
            "vllm": str(vllm),
            "build": "abc",
            "source": str(source),
            "port": port,
            "env": [{"VLLM_STAND_IN": str(plan)}],
            "start_timeout": 30,
            "profile": "auto",
            "profiles": {"long": {"max_model_len": 4096, "max_num_seqs": 2}},
        }
        values = Inputs(**given | inputs).model_dump(mode="json")
        ctx = console("kernels", bench.workspace, values, cache=tmp_path / "cache")
        ctx.facts = {"gpus": bench.gpus}
        return ctx

    behave(log=READY)
    bench.behave, bench.context = behave, context
    yield bench
    left = Service.load(bench.workspace / "kernels" / "server")
    if left is not None:
        left.stop(1)


def nothing_is_left(bench):
    here = bench.workspace / "kernels"
    return not (here / "model").exists() and Service.load(here / "server") is None


def test_a_server_with_these_flags_is_started_until_it_answers(bench):
    ctx = bench.context()
    before = STEP.check(ctx)
    assert [r.code for r in before.reasons] == ["not_compiled"]
    assert before.work.seconds and before.work.disk
    STEP.apply(ctx)
    after = STEP.check(ctx)
    assert after.ok and after.reasons == ()
    outputs = Outputs.model_validate(after.outputs)
    assert outputs.compiled and outputs.seconds is not None and "first_request" in outputs.phases
    argv = (bench.folder / "seen.json").read_text()
    assert "--max-model-len 4096 --max-num-seqs 2" in argv, "the flags of the profile that fits"
    files = (bench.folder / "files").read_text().split()
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= set(files)
    assert nothing_is_left(bench)


def test_the_kernels_land_where_the_server_will_look_for_them(bench, monkeypatch):
    from runbook.steps.common import jit

    ctx = bench.context()
    STEP.apply(ctx)
    spec = json.loads((bench.workspace / "kernels" / "server" / "spec.json").read_text())
    assert spec["base_env"] == jit.environment(ctx, "abc")
    assert "/jit/abc/sm_120/" in spec["base_env"]["TRITON_CACHE_DIR"]


@pytest.mark.parametrize(
    "changes",
    [{"build": "def"}, {"block_size": 64}, {"profile": "long", "users": 2}, {"layers": 2}],
)
def test_other_flags_or_another_build_are_compiled_anew(bench, changes):
    STEP.apply(bench.context())
    assert STEP.check(bench.context()).ok
    assert not STEP.check(bench.context(**changes)).ok


def test_another_architecture_is_compiled_anew(bench):
    STEP.apply(bench.context())
    bench.gpus[0]["architecture"] = "9.0"
    assert not STEP.check(bench.context()).ok


def test_without_a_gpu_it_is_skipped_in_words(bench):
    bench.gpus = []
    check = STEP.check(bench.context())
    assert check.ok and check.outputs["compiled"] is False
    assert "there is no GPU" in check.reasons[0].message
    STEP.apply(bench.context())
    assert not (bench.workspace / "kernels").exists()


def test_where_the_gpus_are_busy_it_is_skipped_in_words(bench):
    bench.load[0]["used"] = 50 << 30
    check = STEP.check(bench.context())
    assert check.ok and "GPU 0 is busy" in check.reasons[0].message
    bench.gpus.append({"architecture": "12.0", "index": 1, "uuid": "GPU-b"})
    bench.load.append({"index": 1, "used": 0, "processes": []})
    other = bench.context(env=[{"CUDA_VISIBLE_DEVICES": "GPU-b"}])
    assert not STEP.check(other).ok


def environment(folder, download):
    """An environment with a `vllm` that downloads as told, else is the bench's."""
    program = folder / "env" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\n[ "$1" = download-kernels ] && {{ {download}; }}\nexec {folder}/vllm "$@"\n'
    )
    program.chmod(0o755)
    site = folder / "env" / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    return program, site / "flashinfer_cubin-0.7.2.dist-info"


def test_precompiled_kernels_are_fetched_and_recorded_by_digest(bench):
    program, info = environment(bench.folder, "true")
    text = f"mkdir {info} && printf 'a,sha256=b,1' > {info}/RECORD && exit"
    program.write_text(program.read_text().replace("true", text))
    ctx = bench.context(vllm=str(program), precompiled=True)
    STEP.apply(ctx)
    digest = hashlib.sha256(b"a,sha256=b,1").hexdigest()
    assert STEP.check(ctx).outputs["precompiled"] == {"flashinfer-cubin==0.7.2": digest}
    assert STEP.check(ctx).outputs["compiled"]


def test_precompiled_kernels_that_cannot_be_fetched_are_compiled(bench):
    program, _ = environment(bench.folder, "echo ERROR: No matching distribution >&2; exit 1")
    ctx = bench.context(vllm=str(program), precompiled=True)
    said = []
    ctx.on_notice = said.append
    STEP.apply(ctx)
    outputs = STEP.check(ctx).outputs
    assert outputs["compiled"] and outputs["precompiled"] == {}
    assert "were not fetched: ERROR: No matching distribution; they are compiled" in said[0]


def test_where_a_server_of_the_build_has_served_nothing_is_left_to_compile(bench):
    from runbook.steps.common import jit

    ctx = bench.context()
    jit.Starts({"base_env": jit.environment(ctx, "abc")}).add(12.0, first=True)
    check = STEP.check(ctx)
    assert check.ok and "has served here" in check.reasons[0].message
    STEP.apply(ctx)
    assert not (bench.workspace / "kernels").exists()
    assert not STEP.check(bench.context(build="def")).ok


def test_a_start_that_fails_is_told_and_leaves_nothing(bench):
    bench.behave(log="", exits=1)
    ctx = bench.context()
    STEP.apply(ctx)
    check = STEP.check(ctx)
    assert check.ok
    (reason,) = check.reasons
    assert (reason.code, reason.severity) == ("kernels_not_compiled", "warning")
    assert check.outputs["compiled"] is False
    assert nothing_is_left(bench)


def test_a_model_that_cannot_be_made_is_told(bench, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text(
        '{"architectures": ["Other"], "num_hidden_layers": 2}'
    )
    ctx = bench.context(source=str(tmp_path / "bad"))
    STEP.apply(ctx)
    assert "no synthetic checkpoint can be made" in STEP.check(ctx).reasons[0].message


def test_undo_leaves_nothing(bench):
    STEP.apply(bench.context())
    STEP.undo(bench.context())
    assert not (bench.workspace / "kernels").exists()
    STEP.undo(bench.context())


def test_there_is_one_source():
    for given in ({}, {"repo": "a/b", "source": "/s"}):
        with pytest.raises(ValidationError, match="either repo or source"):
            Inputs(vllm="v", build="b", **given)
