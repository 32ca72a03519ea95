"""Starts that hang, compile or merely are silent, with real processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from runbook.protocol import StepFailure
from runbook.steps.common.starting.sampler import Gpus, Sampler, all_tasks, tree, written

pytestmark = pytest.mark.harness

RECORDED = Path(__file__).parents[1] / "common" / "diagnoses" / "logs"
WAITS = (
    "(EngineCore pid=900) INFO 11-26 10:02:21 [shm_broadcast.py:801] No available shared memory "
    "broadcast block found in 60 seconds. This typically happens when some processes are hanging "
    "or doing some time-consuming work (e.g. compilation, weight/kv cache quantization).\n"
)
TUNES = "(Worker_TP0 pid=931) INFO 11-26 10:04:40 [kernel_warmup.py:1] Running FlashInfer autotune"
RANK = {"name": "VLLM::Worker_TP1", "command": ["/bin/sleep", "600"]}
BURN = "while :; do :; done"


@pytest.fixture
def quick(monkeypatch):
    """The watch in seconds instead of minutes; `gpus` is what NVML would say."""
    monkeypatch.setattr("runbook.steps.common.starting.watch.QUIET_SECONDS", 3.0)
    monkeypatch.setattr("runbook.steps.common.starting.watch.STOPPED_SECONDS", 1.0)
    monkeypatch.setattr("runbook.steps.common.starting.hang.SAMPLE_SECONDS", 0.2)

    def with_gpus(*use):
        gpus = SimpleNamespace(use=lambda pids: use or None, close=lambda: None)
        monkeypatch.setattr("runbook.steps.common.starting.sampler.open_gpus", lambda: gpus)

    return with_gpus


@pytest.mark.parametrize(
    ("plan", "gpus", "code", "words"),
    [
        ({"log": WAITS * 2, "spins": True}, (100, 100), "collective_hang", "100 to 100 %"),
        ({"log": TUNES, "hangs": True}, (0, 0), "autotune_deadlock", "compilers: none"),
        ({"log": "INFO 11-26 10:04:40 [x.py:1] Loading model from scratch...", "hangs": True},
         (0, 0), "ranks_deadlocked", "no line of progress"),
        ({"log": "", "hangs": True, "children": [RANK | {"stop": "SIGSTOP"}]}, (),
         "rank_stopped", "VLLM::Worker_TP1"),
        ({"log": "", "hangs": True, "children": [RANK | {"stop": "SIGKILL", "after": 0.8}]}, (),
         "rank_dead", "VLLM::Worker_TP1"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)  # fmt: skip
def test_a_hang_is_ended_and_its_evidence_is_the_cause(bench, step, quick, plan, gpus, code, words):
    quick(*gpus)
    bench.behave(**plan)
    with pytest.raises(StepFailure) as caught:
        step.apply(bench.context(start_timeout=60))
    assert caught.value.code == code
    assert words in caught.value.cause
    assert "runbook run" in str(caught.value.remedy)
    assert bench.service is None


def test_a_compilation_is_waited_for_however_long(bench, step, quick, tmp_path):
    quick(0)
    compiler = tmp_path / "cicc"
    compiler.symlink_to("/bin/bash")
    burns = {"name": "cicc", "command": [str(compiler), "-c", BURN]}
    bench.behave(log=WAITS * 20, listen_delay=7, children=[burns])
    step.apply(bench.context())
    assert "start the processes: compiling (cicc)" in [message for *_, message in bench.progress]


def test_a_healthy_start_that_says_nothing_for_long_is_waited_for(bench, step, quick, tmp_path):
    """It writes into the caches: more than twice the time in which a hang would be ended."""
    quick(0)
    grows = "for n in $(seq 28); do echo > $TRITON_CACHE_DIR/$n; sleep 0.25; done"
    shell = {"name": "worker", "command": ["/bin/bash", "-c", grows]}
    bench.behave(log=WAITS * 20, listen_delay=7, children=[shell])
    environment = [{"VLLM_STAND_IN": str(bench.plan), "TRITON_CACHE_DIR": str(tmp_path)}]
    step.apply(bench.context(env=environment))


@pytest.mark.parametrize(
    "name",
    ["one-h200-six-layers-served", "two-h200-full-size-jit", "0731-two-h200-first-start"],
)
def test_recorded_healthy_starts_are_not_ended(bench, step, quick, name):
    quick(0, 0)
    log = (RECORDED / f"{name}.log").read_text() + WAITS * 10
    bench.behave(log=log, line_delay=0.01)
    step.apply(bench.context())


def test_a_time_out_has_the_evidence(bench, step, quick):
    quick(0, 100)
    bench.behave(log="INFO 11-23 18:20:11 [x.py:1] Loading model from scratch...", spins=True)
    with pytest.raises(StepFailure) as caught:
        step.apply(bench.context(start_timeout=4))
    assert caught.value.code == "start_timeout"
    assert "load weights" in caught.value.cause
    assert "GPUs: 0 to 0 %, 100 to 100 %" in caught.value.cause


class TestSampler:
    def test_the_tree_is_the_session_and_what_it_started(self):
        own = os.getpid()
        assert own in {task.pid for task in tree(os.getsid(0), all_tasks())}

    def test_what_is_written_changes_the_count(self, tmp_path):
        before = written(tmp_path)
        (tmp_path / "a").mkdir()
        (tmp_path / "a/kernel.so").write_bytes(b"")
        empty = written(tmp_path)
        (tmp_path / "a/kernel.so").write_bytes(b"x")
        assert before < empty < written(tmp_path)
        assert written(tmp_path / "none") == 0

    def test_what_nvml_said_long_ago_is_not_known(self, monkeypatch):
        gpus = Gpus.__new__(Gpus)
        gpus.seen = (time.monotonic(), [(90, frozenset({7})), (10, frozenset())])
        assert gpus.use({7, 8}) == (90,)
        assert gpus.use({9}) == (90, 10), "a container's processes have other numbers"
        gpus.seen = (time.monotonic() - 60, gpus.seen[1])
        assert gpus.use({7}) == ()

    def test_the_use_is_asked_of_nvml_until_it_fails(self, monkeypatch):
        class NVMLError(Exception):
            pass

        uses = iter([(97, 3), (98, 4)])

        def rates(handle):
            if handle == 0:
                rates.now = next(uses, None)
            if rates.now is None:
                raise NVMLError
            return SimpleNamespace(gpu=rates.now[handle])

        nvml = SimpleNamespace(
            NVMLError=NVMLError,
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: 2,
            nvmlDeviceGetHandleByIndex=lambda number: number,
            nvmlDeviceGetUtilizationRates=rates,
            nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=70 + handle)],
        )
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr("runbook.steps.common.starting.sampler.GPU_SECONDS", 0.001)
        gpus = Gpus()
        deadline = time.monotonic() + 10
        while gpus.use({70}) != (98,):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert gpus.use({71}) == (4,)
        assert gpus.use({70, 71}) == (98, 4)
        gpus.close()

    def test_time_of_processes_that_ended_stays_counted(self, monkeypatch):
        from runbook.process import Identity
        from runbook.steps.common.starting import sampler

        monkeypatch.setattr(sampler, "all_tasks", lambda: tasks)
        leader = Identity(1, 0, "")
        task = sampler.Task(1, "python", "S", 0, 1, 100)
        taken = Sampler(leader, [])
        tasks = [task, sampler.Task(2, "cicc", "R", 1, 1, 500)]
        first = taken.take().cpu
        tasks = [task]
        assert taken.take().cpu == first
