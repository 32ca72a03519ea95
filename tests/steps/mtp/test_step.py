"""The step: lint, mend, link, stamp; resumed after kills; quick when nothing is to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from runbook.planning.context import StepContext
from runbook.protocol import StepFailure
from runbook.steps.checkpoint.checkpoint import open_folder
from runbook.steps.checkpoint.lint import lint
from runbook.steps.mtp import STAMP, Mtp
from tests.steps.checkpoint import cases
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import CPU, DEFECTS, FORK, V33, Defect, clean


def context(source: Path, workspace: Path, **inputs) -> StepContext:
    values = {
        "source": str(source),
        "destination": "model",
        "target": V33.release,
        "series": "",
        "require_head": True,
        "mend": "auto",
        "aliases": False,
        **inputs,
    }
    Mtp.Inputs(**values)
    workspace.mkdir(exist_ok=True)
    return StepContext("mtp", SimpleNamespace(**values), workspace)


def array(folder: Path, name: str) -> np.ndarray:
    found = open_folder(folder)
    tensor = found.tensors[name]
    dtypes = {v: k for k, v in tiny.NAMES.items()}
    return np.frombuffer(found.read(tensor), dtypes[tensor.dtype]).reshape(tensor.shape)


def test_links_a_sound_checkpoint(tmp_path):
    source = clean().write(tmp_path / "source")
    ctx = context(source, tmp_path / "w")
    assert not Mtp().check(ctx).ok
    Mtp().apply(ctx)
    check = Mtp().check(ctx)
    assert check.ok
    assert check.outputs == {
        "path": str(tmp_path / "w/model"),
        "findings": 0,
        "head": True,
        "mended": [],
        "code": {},
    }
    Mtp.Outputs(**check.outputs)
    for shard in source.glob("*.safetensors"):
        assert (tmp_path / "w/model" / shard.name).samefile(shard)
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json"):
        copy = tmp_path / "w/model" / name
        assert copy.read_bytes() == (source / name).read_bytes()
        assert not copy.samefile(source / name)


@pytest.mark.parametrize(
    "defect",
    [
        *(pytest.param(d, id=n) for n, d in DEFECTS.items() if d.severity == "error" or d.mended),
        *(pytest.param(d, id=n) for n, d in cases.CASES.items() if d.mended),
    ],
)
def test_mends_or_refuses(defect: Defect, tmp_path):
    made = defect.make()
    defect.plant(made)
    source = made.write(tmp_path / "source")
    defect.damage(source)
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    ctx = context(source, tmp_path / "w", target=defect.target.release)
    if defect.mended:
        Mtp().apply(ctx)
        check = Mtp().check(ctx)
        assert check.ok and defect.finding in check.outputs["mended"]
        left = lint(tmp_path / "w/model", defect.target)
        assert not [f for f in left if f.severity == "error" or f.id == defect.finding]
    else:
        with pytest.raises(StepFailure) as failure:
            Mtp().apply(ctx)
        assert failure.value.code == defect.finding
        assert failure.value.remedy
        assert not (tmp_path / "w/model").exists()
        assert not (tmp_path / "w/model.partial").exists()
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before


@pytest.mark.parametrize("name", ["DSpark", "NVFP4 and its draft"])
def test_links_a_draft_of_dspark(name, tmp_path):
    make, target = cases.SOUND[name]
    source = make().write(tmp_path / "source")
    inputs = {"target": target.release, "series": target.series}
    ctx = context(source, tmp_path / "w", **inputs)
    Mtp().apply(ctx)
    outputs = Mtp().check(ctx).outputs
    assert outputs["head"] and outputs["findings"] == 0 and outputs["mended"] == []


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, d in cases.CASES.items()
        if d.severity == "error" and d.target == V33 and not d.mended
    ],
)
def test_refuses_what_it_cannot_mend(name, tmp_path):
    defect = cases.CASES[name]
    made = defect.make()
    defect.plant(made)
    source = made.write(tmp_path / "source")
    defect.damage(source)
    with pytest.raises(StepFailure) as failure:
        Mtp().apply(context(source, tmp_path / "w"))
    assert defect.finding in (failure.value.code, *(r.code for r in failure.value.reasons))
    assert not (tmp_path / "w/model").exists()


def test_a_missing_head_is_told_first_and_may_be_allowed(tmp_path):
    source = tiny.v4(mtp=False).write(tmp_path / "source")
    with pytest.raises(StepFailure) as failure:
        Mtp().apply(context(source, tmp_path / "w"))
    assert failure.value.code == "mtp_stripped"
    assert "mtp-head" in failure.value.remedy
    ctx = context(source, tmp_path / "w", require_head=False)
    Mtp().apply(ctx)
    assert Mtp().check(ctx).outputs["head"] is False


def test_dequantises_exactly_and_links_the_other_shards(tmp_path):
    made = tiny.v4()
    source = made.write(tmp_path / "source")
    Mtp().apply(context(source, tmp_path / "w"))
    folder = tmp_path / "w/model"
    assert (folder / tiny.MTP_SHARD).samefile(source / tiny.MTP_SHARD)
    found = open_folder(folder)
    weights = [n for n in made.tensors if "compressor" in n and n.endswith("_scale")]
    assert len(weights) == 10
    for scale in weights:
        name = scale.replace("weight_scale", "weight")
        assert scale not in found.index
        values = made.tensors[name].astype(np.float32)
        blocks = np.kron(made.tensors[scale], np.ones((128, 128), np.float32))
        want = (values * blocks[: values.shape[0], : values.shape[1]]).astype(ml_dtypes.bfloat16)
        assert np.array_equal(array(folder, name), want)
    untouched = [n for n in made.tensors if "compressor" not in n]
    for name in untouched:
        assert found.read(found.tensors[name]) == made.tensors[name].tobytes(), name
    quant = found.config["quantization_config"]
    assert not any("compressor" in t for t in quant["config_groups"]["group_0"]["targets"])
    assert any("compressor" in t for t in quant["ignore"])
    assert found.total_size == sum(t.nbytes for t in found.tensors.values())


def test_written_shards_stay_aligned(tmp_path):
    source = tiny.v4().write(tmp_path / "source")
    Mtp().apply(context(source, tmp_path / "w"))
    sizes = {"I64": 8, "F32": 4, "I32": 4, "BF16": 2}
    for header in open_folder(tmp_path / "w/model").headers.values():
        for tensor in header.tensors:
            assert tensor.begin % sizes.get(tensor.dtype, 1) == 0, tensor


def test_retypes_exponent_bytes_without_changing_them(tmp_path):
    made = clean()
    scale = "mtp.0.attn.wkv.weight_scale"
    made.tensors[scale] = np.array([[118, 119]], "u1")
    Mtp().apply(context(made.write(tmp_path / "source"), tmp_path / "w"))
    values = array(tmp_path / "w/model", scale)
    assert values.dtype == tiny.E8M0
    assert values.astype(np.float32).tolist() == [[2.0**-9, 2.0**-8]]


def test_aliases_on_request(tmp_path):
    made = clean()
    ctx = context(made.write(tmp_path / "source"), tmp_path / "w", aliases=True)
    Mtp().apply(ctx)
    folder = tmp_path / "w/model"
    assert "mtp_aliases" in Mtp().check(ctx).outputs["mended"]
    alias = array(folder, "mtp.0.emb.tok_emb.weight")
    assert np.array_equal(alias, made.tensors["embed.weight"])
    assert "mtp_aliases" not in {f.id for f in lint(folder, V33)}


def test_check_tells_what_changed(tmp_path):
    source = clean().write(tmp_path / "source")
    ctx = context(source, tmp_path / "w")
    Mtp().apply(ctx)
    model = tmp_path / "w/model"
    other = context(source, tmp_path / "w", target=CPU.release)
    assert Mtp().check(other).reasons[0].code == "inputs_changed"
    config = (source / "config.json").read_text()
    (source / "config.json").write_text(config + " ")
    assert Mtp().check(ctx).reasons[0].code == "source_changed"
    Mtp().apply(ctx)
    (model / "config.json").write_text("{}")
    assert Mtp().check(ctx).reasons[0].code == "result_changed"
    Mtp().apply(ctx)
    (model / tiny.MTP_SHARD).unlink()
    assert "gone" in Mtp().check(ctx).reasons[0].message
    Mtp().apply(ctx)
    (model / STAMP).write_text("{")
    assert Mtp().check(ctx).reasons[0].code == "not_made"
    Mtp().apply(ctx)
    assert Mtp().check(ctx).ok


def test_deep_check_lints_again(tmp_path):
    ctx = context(clean().write(tmp_path / "source"), tmp_path / "w")
    Mtp().apply(ctx)
    config = tmp_path / "w/model/config.json"
    times = config.stat()
    text = config.read_text()
    for damaged in (text.replace("eepseek", "eeplook"), text[:-1] + " "):
        config.write_text(damaged)
        os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))
        ctx.deep = False
        assert Mtp().check(ctx).ok
        ctx.deep = True
        assert Mtp().check(ctx).reasons[0].code in ("architecture_unknown", "no_checkpoint")


def test_undo_removes_all_and_is_a_no_op_twice(tmp_path):
    source = clean().write(tmp_path / "source")
    ctx = context(source, tmp_path / "w")
    Mtp().apply(ctx)
    Mtp().undo(ctx)
    Mtp().undo(ctx)
    assert list((tmp_path / "w").iterdir()) == []
    assert len(list(source.iterdir())) == 6


@pytest.mark.parametrize("destination", ["..", "/tmp/elsewhere", ".", "x/../.."])
def test_destination_outside_the_workspace_is_refused(destination, tmp_path):
    source = clean().write(tmp_path / "source")
    ctx = context(source, tmp_path / "w", destination=destination)
    with pytest.raises(StepFailure, match="destination"):
        Mtp().apply(ctx)


def test_unknown_target_and_missing_source(tmp_path):
    source = clean().write(tmp_path / "source")
    with pytest.raises(StepFailure) as failure:
        Mtp().apply(context(source, tmp_path / "w", target="9.9"))
    assert failure.value.code == "unknown_target" and "series" in failure.value.remedy
    with pytest.raises(StepFailure) as failure:
        Mtp().apply(context(tmp_path / "nothing", tmp_path / "w"))
    assert failure.value.code == "no_checkpoint"


def test_too_little_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda p: SimpleNamespace(free=1000))
    with pytest.raises(StepFailure) as failure:
        Mtp().apply(context(tiny.v4().write(tmp_path / "source"), tmp_path / "w"))
    assert failure.value.code == "not_enough_disk"
    assert not (tmp_path / "w/model.partial").exists()


RUN = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from tests.steps.mtp.test_step import context
from runbook.steps.mtp import Mtp
Mtp().apply(context(Path({source!r}), Path({workspace!r})))
"""


@pytest.mark.harness
def test_killed_anywhere_the_result_is_the_same(tmp_path):
    """Kill at random moments of apply; the run that completes leaves the same bytes."""
    source = tiny.v4().write(tmp_path / "source")
    whole = context(source, tmp_path / "whole")
    began = time.monotonic()
    Mtp().apply(whole)
    took = time.monotonic() - began
    want = {p.name: p.read_bytes() for p in (tmp_path / "whole/model").glob("[!.]*")}
    code = RUN.format(
        here=str(Path(__file__).parents[3]), source=str(source), workspace=str(tmp_path / "w")
    )
    random = np.random.default_rng(5)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(0.25 + random.random() * (took + 0.2))
        process.kill()
        process.wait()
    ctx = context(source, tmp_path / "w")
    if not Mtp().check(ctx).ok:
        Mtp().apply(ctx)
    assert Mtp().check(ctx).ok
    got = {p.name: p.read_bytes() for p in (tmp_path / "w/model").glob("[!.]*")}
    assert got == want


def test_killed_between_any_two_writes(tmp_path, monkeypatch):
    """Stop at each rename in turn, as a kill would, and go on."""
    source = tiny.v4().write(tmp_path / "source")
    calls = {name: getattr(Path, name) for name in ("replace", "rename")}
    budget = -1

    class Killed(BaseException):
        pass

    def counting(call):
        def counted(self, target):
            nonlocal budget
            if budget == 0:
                raise Killed
            budget -= 1
            return call(self, target)

        return counted

    for name, call in calls.items():
        monkeypatch.setattr(Path, name, counting(call))
    killed = 0
    while True:
        ctx = context(source, tmp_path / f"w{killed}")
        Mtp().apply(
            context(
                source,
                tmp_path / f"w{killed}",
                mend="none",
                require_head=False,
                target=FORK.release,
            )
        )
        budget = killed
        try:
            Mtp().apply(ctx)
            break
        except Killed:
            assert not Mtp().check(ctx).ok
        budget = -1
        Mtp().apply(ctx)
        assert Mtp().check(ctx).ok
        assert {p.name for p in ctx.workspace.iterdir()} == {"model"}
        killed += 1
    assert killed > 7


def test_a_quick_check_reads_no_tensor_and_imports_little(tmp_path, audit):
    source = tiny.v4().write(tmp_path / "source")
    ctx = context(source, tmp_path / "w")
    Mtp().apply(ctx)
    with audit() as seen:
        assert Mtp().check(ctx).ok
    opened = [path for path in seen.opened if not path.isdigit()]  # not descriptors
    assert opened == [str(tmp_path / "w/model" / STAMP)]
    code = "import sys; import runbook.steps.mtp; print(','.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"numpy", "pydantic", "runbook.steps.checkpoint.lint"} & set(
        loaded.stdout.split(",")
    )


def test_what_is_no_file_is_left_behind(tmp_path):
    source = clean().write(tmp_path / "source")
    for folder in (source, source / "more"):
        folder.mkdir(exist_ok=True)
        os.mkfifo(folder / "pipe")
        (folder / "nowhere.safetensors").symlink_to("gone")
        (folder / "note.txt").write_text("kept")
    ctx = context(source, tmp_path / "w")
    Mtp().apply(ctx)
    assert Mtp().check(ctx).ok
    model = tmp_path / "w/model"
    odd = {"pipe", "nowhere.safetensors"}
    assert not odd & {path.name for path in model.rglob("*")}
    assert {path.parent.name for path in model.rglob("note.txt")} == {"model", "more"}


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    source = clean().write(tmp_path / "source")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "w/model.partial/x"))

    monkeypatch.setattr("runbook.steps.mtp.write.link", full)
    with pytest.raises(StepFailure) as failure:
        Mtp().apply(context(source, tmp_path / "w"))
    assert failure.value.code == "disk_full" and "model.partial" in failure.value.message
