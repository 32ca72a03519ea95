"""The step against ranks that stand in for real ones, and against torch where there is one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from runbook.planning.context import console
from runbook.protocol import StepFailure
from runbook.steps.collectives import CUSTOM, PCIE_IPC, Collectives, choose
from runbook.steps.collectives.models import Inputs, Outputs
from runbook.steps.collectives.ranks import Result

pytestmark = pytest.mark.harness

STEP = Collectives()
MEASURED = yaml.safe_load(Path(__file__).with_name("measured.yaml").read_text())
WITH, WITHOUT = "NCCL with peer access", "NCCL without peer access"
GPUS = [{"index": i, "uuid": f"GPU-{i}", "driver": "580", "architecture": "12.0"} for i in (0, 1)]
LINKS = [{"a": 0, "b": 1, "kind": "NODE", "nvlinks": 0}]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A step whose ranks behave as they are told: with peer access, without, and vLLM's own."""
    python = tmp_path / "python"
    # A copy, so that the ranks of this test are told from those of others.
    stand_in = shutil.copy(Path(__file__).with_name("stand_in.py"), tmp_path)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S {stand_in} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("DIARY", str(tmp_path / "diary"))
    (tmp_path / "diary").write_text("")
    bench = SimpleNamespace(gpus=GPUS, links=LINKS)

    def behave(with_peer="right", without="right", custom="right", pcie_ipc="absent"):
        modes = {"p2p 0": with_peer, "p2p 1": without, "custom": custom, "pcie_ipc": pcie_ipc}
        monkeypatch.setenv("STAND_IN", json.dumps(modes))

    def context(**inputs):
        given = {"python": str(python), "ranks": 2, "deadline": 10, **inputs}
        ctx = console("collectives", tmp_path / "w", Inputs(**given).model_dump(mode="json"))
        ctx.facts = {"gpus": bench.gpus, "gpu_links": bench.links}
        return ctx

    def diary():
        return (tmp_path / "diary").read_text().splitlines()

    bench.behave, bench.context, bench.diary = behave, context, diary
    behave()
    return bench


def verdicts(outputs):
    return {entry["variant"]: entry["verdict"] for entry in outputs["table"]}


def test_the_fastest_that_is_right_is_given_to_the_server(bench):
    bench.behave(with_peer="right 1", without="right 2")
    ctx = bench.context(env=[{"FROM_BOOK": "yes"}, {"NCCL_NVLS_ENABLE": "1"}])
    before = STEP.check(ctx)
    assert [reason.code for reason in before.reasons] == ["not_probed"]
    assert before.work.seconds == 100
    STEP.apply(ctx)
    after = STEP.check(ctx)
    assert after.ok and after.reasons == ()
    outputs = Outputs.model_validate(after.outputs).model_dump()
    assert outputs["env"] == {"NCCL_P2P_DISABLE": "1"}
    assert (outputs["fastest"], outputs["custom_all_reduce"]) == (WITHOUT, "right")
    of_one = outputs["table"][0]["sizes"]
    assert [size["bytes"] for size in of_one] == [4096, 65536, 1 << 20, 32 << 20]
    assert of_one[0]["seconds"] == pytest.approx(2 * 4096 / 1e9), "the slowest rank counts"
    # NVLink multicast stays off, whatever the book says; the rest of its environment is kept.
    assert {line.split()[-2:] == ["0", "yes"] for line in bench.diary()} == {True}


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case["name"])
def test_noise_of_a_size_decides_nothing(case):
    found = [
        Result(name, "right", sizes=[{"seconds": us / 1e6} for us in times])
        for name, times in case["microseconds"].items()
    ]
    assert choose(found).variant == case["fastest"]


@pytest.mark.parametrize(("visible", "says"), [("GPU-0,GPU-1", None), ("1,2", "there are 1 GPUs")])
def test_the_gpus_that_the_server_will_see_are_tried(bench, visible, says):
    env = [{"CUDA_VISIBLE_DEVICES": visible}]
    third = {**GPUS[0], "index": 7, "uuid": "GPU-7"}
    bench.gpus, bench.links = [*GPUS, third], [*LINKS, {**LINKS[0], "b": 7, "nvlinks": 4}]
    check = STEP.check(bench.context(env=env))
    if says:
        assert says in check.reasons[0].message
        return
    STEP.apply(bench.context(env=env))
    assert any(line.startswith("pcie_ipc") for line in bench.diary()), "NVLink is elsewhere"
    bench.gpus, bench.links = GPUS, LINKS
    assert STEP.check(bench.context(env=env)).ok, "what else there is does not matter"


@pytest.mark.parametrize(
    ("mode", "verdict", "says"),
    [
        ("wrong", "wrong", "3 values of 4096 bytes"),
        ("hangs", "hung", "were not done in 1 s"),
        ("crashes", "failed", "rank 1 exits 1: Traceback: / ncclSystemError"),
        ("killed", "failed", "rank 1 ended by signal 9: it said nothing"),
        ("silent", "failed", "without an answer"),
    ],
)
def test_what_does_not_work_is_never_used_and_says_so(bench, mode, verdict, says):
    bench.behave(with_peer=f"{mode} 100" if mode == "wrong" else mode, custom=mode)
    ctx = bench.context(deadline=1)
    STEP.apply(ctx)
    check = STEP.check(ctx)
    assert check.ok
    assert check.outputs["env"] == {"NCCL_P2P_DISABLE": "1"}
    found = {WITH: verdict, WITHOUT: "right", CUSTOM: verdict, PCIE_IPC: "unavailable"}
    assert verdicts(check.outputs) == found
    assert [reason.severity for reason in check.reasons] == ["warning", "warning"]
    assert says in check.reasons[0].message


def test_a_failure_ends_the_other_ranks_at_once_and_leaves_nothing(bench, tmp_path):
    bench.behave(with_peer="crashes")
    began = time.monotonic()
    STEP.apply(bench.context(deadline=60))
    assert time.monotonic() - began < 30
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if is_rank(p, tmp_path)]
    assert running == []


def is_rank(cmdline: Path, folder: Path) -> bool:
    try:
        return str(folder / "stand_in.py").encode() in cmdline.read_bytes()
    except OSError:
        return False


def test_where_nothing_works_the_step_fails_with_all_that_was_tried(bench):
    bench.behave("hangs", "wrong", "right")
    with pytest.raises(StepFailure) as caught:
        STEP.apply(bench.context(deadline=1))
    failure = caught.value
    assert failure.code == "collectives_broken"
    assert f"{WITH}: hung" in failure.cause and f"{WITHOUT}: wrong" in failure.cause
    assert not STEP.check(bench.context(deadline=1)).ok


def test_minutes_are_not_spent_again_while_nothing_has_changed(bench):
    STEP.apply(bench.context(build="a"))
    assert STEP.check(bench.context(build="a")).ok
    assert not STEP.check(bench.context(build="b")).ok
    assert not STEP.check(bench.context(build="a", env=[{"NCCL_PROTO": "LL"}])).ok
    bench.gpus = [{**gpu, "driver": "595"} for gpu in GPUS]
    assert not STEP.check(bench.context(build="a")).ok
    bench.gpus, bench.links = GPUS, [{**LINKS[0], "kind": "PIX"}]
    assert not STEP.check(bench.context(build="a")).ok


@pytest.mark.parametrize(
    ("gpus", "ranks", "says"),
    [(0, 2, "there are 0 GPUs"), (1, 2, "there are 1 GPUs"), (2, 1, "one rank alone")],
)
def test_what_cannot_be_probed_is_said_and_holds(bench, gpus, ranks, says):
    bench.gpus = GPUS[:gpus]
    check = STEP.check(bench.context(ranks=ranks))
    assert check.ok and check.outputs["env"] == {}
    assert says in check.reasons[0].message
    STEP.apply(bench.context(ranks=ranks))
    assert bench.diary() == []


def test_what_vllm_does_not_offer_is_no_fault(bench):
    bench.behave(custom="absent")
    STEP.apply(bench.context())
    check = STEP.check(bench.context())
    assert check.reasons == () and check.outputs["custom_all_reduce"] == "unavailable"


OVER_PCIE = "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC"


@pytest.mark.parametrize(
    ("with_peer", "pcie_ipc", "env"),
    [
        ("right 2", "right 3", {"NCCL_P2P_DISABLE": "0", OVER_PCIE: "1"}),
        ("right 2", "right 1", {"NCCL_P2P_DISABLE": "0"}),
        ("right 2", "wrong 3", {"NCCL_P2P_DISABLE": "0"}),
        ("right 2", "crashes", {"NCCL_P2P_DISABLE": "0"}),
        ("crashes", "right 3", {"NCCL_P2P_DISABLE": "1"}),
    ],
)
def test_flashinfers_over_pcie_is_given_where_it_is_right_and_fastest(
    bench, with_peer, pcie_ipc, env
):
    bench.behave(with_peer=with_peer, pcie_ipc=pcie_ipc)
    STEP.apply(bench.context())
    outputs = Outputs.model_validate(STEP.check(bench.context()).outputs)
    assert outputs.env == env
    assert outputs.pcie_ipc_all_reduce == {"crashes": "failed"}.get(pcie_ipc, pcie_ipc.split()[0])


@pytest.mark.parametrize(("nvlinks", "asked"), [(18, True), (0, False)])
def test_flashinfers_over_pcie_is_not_tried_over_nvlink_or_unasked(bench, nvlinks, asked):
    bench.links = [{**link, "nvlinks": nvlinks} for link in LINKS]
    ctx = bench.context(pcie_ipc=asked)
    STEP.apply(ctx)
    assert not any(line.startswith("pcie_ipc") for line in bench.diary())
    assert STEP.check(ctx).outputs["pcie_ipc_all_reduce"] is None


def test_vllms_own_is_not_tried_where_it_may_use_multicast(bench):
    bench.gpus = [{**gpu, "architecture": "10.0"} for gpu in GPUS]
    STEP.apply(bench.context())
    assert not any(line.startswith("custom") for line in bench.diary())
    assert STEP.check(bench.context()).outputs["custom_all_reduce"] is None


def test_undo_forgets(bench):
    ctx = bench.context()
    STEP.apply(ctx)
    STEP.undo(ctx)
    assert not STEP.check(ctx).ok
    STEP.undo(ctx)


def torch_python():
    """An interpreter that has torch: RUNBOOK_TORCH_PYTHON, else that of the rehearsal's build."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    built = Path(data, "runbook/rehearsal/venv/bin/python")
    return os.environ.get("RUNBOOK_TORCH_PYTHON") or (str(built) if built.exists() else None)


@pytest.mark.skipif(torch_python() is None, reason="no interpreter here has torch")
def test_real_ranks_over_gloo(tmp_path):
    given = {"python": torch_python(), "ranks": 2, "backend": "gloo", "sizes": [4096, 1 << 20]}
    ctx = console("collectives", tmp_path, Inputs(**given).model_dump(mode="json"))
    STEP.apply(ctx)
    outputs = STEP.check(ctx).outputs
    assert verdicts(outputs) == {"gloo": "right"}
    assert all(size["seconds"] > 0 for size in outputs["table"][0]["sizes"])
