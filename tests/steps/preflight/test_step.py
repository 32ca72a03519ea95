"""The step as the engine calls it, on this machine."""

from __future__ import annotations

import json
import os
import socket

import pytest

from runbook.planning.context import console
from runbook.process import Identity
from runbook.protocol import PreconditionNotMet
from runbook.remedy import Remedy
from runbook.steps.common import facts
from runbook.steps.common.service import Service
from runbook.steps.common.store import sha256_file
from runbook.steps.common.vllm_release import ENV, load_release
from runbook.steps.preflight import Preflight
from runbook.steps.preflight.models import Inputs, Outputs

from ..vllm.conftest import write_wheel

STEP = Preflight()
FLAGSHIP = {
    "gpus": 2,
    "gpu_architecture": "12.0",
    "gpu_memory_mib": 95000,
    "driver": "570",
    "disk_gb": 10**9,
    "compiler": 9,
}


@pytest.fixture(autouse=True)
def no_driver(monkeypatch):
    monkeypatch.setattr(facts, "NVIDIA_TRACES", ())


@pytest.fixture
def context(tmp_path):
    def make(**inputs):
        return console("preflight", tmp_path, Inputs(**inputs).model_dump(mode="json"))

    return make


def test_apply_examines_and_check_holds_then(context):
    ctx = context(compiler=5, python="3.11")
    before = STEP.check(ctx)
    assert [reason.code for reason in before.reasons] == ["not_examined"]
    STEP.apply(ctx)
    after = STEP.check(ctx)
    assert after.ok
    Outputs.model_validate(after.outputs)


def test_other_inputs_are_examined_anew(context):
    STEP.apply(context(compiler=5))
    assert STEP.check(context(compiler=5)).ok
    assert not STEP.check(context(compiler=6)).ok


def test_the_flagship_fails_with_all_that_is_missing_and_the_way_out(context):
    with pytest.raises(PreconditionNotMet) as caught:
        STEP.apply(context(**FLAGSHIP))
    failure = caught.value
    assert failure.exit_code == 3
    assert [reason.code for reason in failure.reasons] == [
        "no_driver",
        "gpus_missing",
        "disk_too_small",
    ]
    assert failure.remedy == Remedy("run", ("rehearsal",))
    assert "no NVIDIA driver" in failure.cause
    assert not STEP.check(context(**FLAGSHIP)).ok


def test_a_single_unmet_condition_is_the_failure_itself(context):
    with pytest.raises(PreconditionNotMet) as caught:
        STEP.apply(context(disk_gb=10**9))
    assert caught.value.code == "disk_too_small"
    assert "--workspace" in caught.value.remedy


def test_warnings_never_fail(context):
    ctx = context(shm_gib=10**6, nofile=2**40)
    STEP.apply(ctx)
    check = STEP.check(ctx)
    assert check.ok
    assert [reason.severity for reason in check.reasons][:1] == ["warning"]


def test_what_goes_wrong_later_is_seen_at_each_look(context):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.close()
        ctx = context(port=port)
        STEP.apply(ctx)
        assert STEP.check(ctx).ok
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        check = STEP.check(ctx)
        assert [reason.code for reason in check.reasons] == ["port_in_use"]
        # The same process, recorded as our own server, is no stranger.
        folder = ctx.workspace / "serve"
        folder.mkdir()
        me = Identity.of(os.getpid())
        assert me is not None
        Service(folder, me, {"port": port}, ready=True, found={}).save()
        assert STEP.check(ctx).ok


def test_undo_leaves_nothing(context):
    ctx = context()
    STEP.apply(ctx)
    STEP.undo(ctx)
    STEP.undo(ctx)
    assert list(ctx.workspace.iterdir()) == []


def test_a_quick_check_starts_nothing_and_asks_nobody(context, audit, tmp_path):
    ctx = context(compiler=5, python="3.11", disk_gb=0.1, memory_gib=0.1, cpu_isa="avx2", port=1)
    STEP.apply(context(compiler=5))
    with audit() as seen:
        STEP.check(ctx)
    assert str(tmp_path / "preflight" / "examined.json") in seen.opened
    assert not seen.started
    assert not seen.connected


@pytest.mark.parametrize(("has", "code"), [(True, "not_examined"), (False, "wheel_not_offered")])
def test_the_first_look_says_where_pytorch_for_cpus_comes_from(
    context, tmp_path, monkeypatch, has, code
):
    release = load_release(ENV / "vllm-0.32.0-cpu.lock.json")
    wheel = release.own_index.wheel(release.python(None))
    content = {"torch/__init__.py": ""}
    tag = wheel.file.removesuffix(".whl").split("-", 2)[2]
    made = write_wheel(tmp_path, "torch", wheel.version, tag, content)
    lock = json.loads(release.path.read_bytes())
    lock["own_index"] = {"url": "http://127.0.0.1:9", "wheels": {wheel.file: sha256_file(made)}}
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path if has else tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    ctx = context(vllm_lock=str(tmp_path / "lock.json"))
    [reason] = STEP.check(ctx).reasons
    assert reason.code == code
    assert ("torch 2.13.0+cpu comes from the configured" in reason.message) == has
    if has:
        STEP.apply(ctx)
        assert STEP.check(ctx).ok
    else:
        with pytest.raises(PreconditionNotMet) as caught:
            STEP.apply(ctx)
        assert caught.value.code == code
