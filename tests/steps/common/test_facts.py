"""The facts of a machine, NVML played by its own library with recorded answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pynvml
import pytest

from runbook.steps.common import facts, nvml

# The flags that decide, as /proc/cpuinfo of the named processors has them.
ZEN3 = "fpu sse sse2 sse4_2 fma avx avx2 bmi2 vaes"
ICE_LAKE = ZEN3 + " avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"
ZEN4 = ICE_LAKE + " avx512_bf16 avx512_vbmi2"
SAPPHIRE_RAPIDS = ZEN4 + " amx_bf16 avx512_fp16 amx_tile amx_int8"

GIB = 1 << 30
MAX_Q = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"


@pytest.mark.parametrize(
    ("flags", "isa", "bf16", "amx"),
    [
        (SAPPHIRE_RAPIDS, "amx", True, True),
        (ZEN4, "avx512_bf16", True, False),
        (ICE_LAKE, "avx512", False, False),
        (ZEN3, "avx2", False, False),
        ("fpu sse sse2", os.uname().machine, False, False),
    ],
)
def test_cpu(tmp_path, monkeypatch, flags, isa, bf16, amx):
    entry = f"processor\t: 0\nmodel name\t: A processor\nflags\t\t: {flags}\n\n"
    second = "processor\t: 1\nmodel name\t: Another\nflags\t\t: avx512_bf16\n\n"
    (tmp_path / "cpuinfo").write_text(entry + second)
    monkeypatch.setattr(facts, "PROC", tmp_path)
    cpu = facts.cpu()
    assert (cpu["model"], cpu["isa"]) == ("A processor", isa)
    assert (cpu["avx512_bf16"], cpu["amx"]) == (bf16, amx)
    assert cpu["cores"] == len(os.sched_getaffinity(0))


def test_cores_take_one_thread_of_each(tmp_path, monkeypatch):
    for cpu, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(facts, "SYSTEM_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5})
    assert facts.physical_cores() == [0, 1]


def test_memory_is_that_of_the_machine():
    memory = facts.memory()
    assert 0 < memory["available"] <= memory["total"]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory["total"] <= pages


@pytest.mark.parametrize(
    ("version", "limit", "expected"),
    [
        (2, str(4 * GIB), {"total": 4 * GIB, "available": 2 * GIB}),
        (2, "max", {"total": 8 * GIB, "available": 5 * GIB}),
        (1, str(4 * GIB), {"total": 4 * GIB, "available": 2 * GIB}),
        (1, "9223372036854771712", {"total": 8 * GIB, "available": 5 * GIB}),
        (None, "", {"total": 8 * GIB, "available": 5 * GIB}),
    ],
)
def test_memory_is_bounded_by_the_control_group(tmp_path, monkeypatch, version, limit, expected):
    """3 GiB used, one of them cache."""
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\nMemAvailable: {5 << 20} kB\n"
    )
    if version is not None:
        limit_name, used_name, cache_key = facts.CGROUP_MEMORY[2 - version]
        (tmp_path / limit_name).parent.mkdir(exist_ok=True)
        (tmp_path / limit_name).write_text(limit + "\n")
        (tmp_path / used_name).write_text(f"{3 * GIB}\n")
        statistics = f"anon 1\n{cache_key} {GIB}\nfile 7\n"
        (tmp_path / limit_name).with_name("memory.stat").write_text(statistics)
    monkeypatch.setattr(facts, "PROC", tmp_path)
    monkeypatch.setattr(facts, "CGROUP", tmp_path)
    assert facts.memory() == expected


def test_without_a_driver_there_is_nothing_and_nothing_is_imported():
    program = (
        "import sys, time; from runbook.steps.common import facts\n"
        "facts.NVIDIA_TRACES = ('/nonexistent',)\n"
        "began = time.perf_counter(); found = facts.gpus()\n"
        "assert found == [] and 'pynvml' not in sys.modules\n"
        "assert facts.gpu_load() == []\n"
        "nothing = facts.nvidia(); assert not any(nothing.values()) and len(nothing) == 6\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_a_driver_it_takes_less_than_a_millisecond(monkeypatch):
    monkeypatch.setattr(facts, "NVIDIA_TRACES", ("/nonexistent/a", "/nonexistent/b"))
    times = []
    for _ in range(20):
        began = time.perf_counter()
        facts.gpus()
        times.append(time.perf_counter() - began)
    assert min(times) < 0.001


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A driver that left its trace."""
    trace = tmp_path / "nvidiactl"
    trace.touch()
    monkeypatch.setattr(facts, "NVIDIA_TRACES", (str(trace),))


def test_a_driver_that_does_not_work_is_told_not_raised(driver, monkeypatch):
    def init():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    assert facts.gpus() == []
    assert facts.gpu_load() == []
    error = facts.nvidia()["error"]
    assert error is not None
    assert "ersion" in error


@pytest.fixture
def two_max_q(driver, monkeypatch):
    """Two Max-Q cards on one host bridge, as NVML 580.126.09 answers."""
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.126.09",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: MAX_Q,
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (12, 0),
        "nvmlDeviceGetMemoryInfo": memory_info,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-0000000{handle}-1f2e-3d4c-5b6a-798877665544",
        "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(
            busId=f"00000000:{handle + 1}1:00.0"
        ),
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
        "nvmlDeviceGetMigMode": not_supported,
        "nvmlDeviceGetGpuMaxPcieLinkGeneration": lambda handle: 5,
        "nvmlDeviceGetCurrPcieLinkWidth": lambda handle: 8,
        "nvmlDeviceGetPowerManagementLimitConstraints": lambda handle: [150_000, 300_000],
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda handle: 5,
        "nvmlDeviceGetMaxPcieLinkWidth": lambda handle: 16,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 300_000,
        "nvmlDeviceGetTopologyCommonAncestor": lambda a, b: pynvml.NVML_TOPOLOGY_NODE,
        "nvmlDeviceGetNvLinkState": not_supported,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: (
            [SimpleNamespace(pid=4321, usedGpuMemory=90 * GIB)] if handle == 1 else []
        ),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)


def not_supported(*_):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def memory_info(handle, version=None):
    """97,887 MiB in all, 97,249 of them visible to CUDA; the reserved ones apart in version 2."""
    used = (0, 90 * GIB)[handle]
    return SimpleNamespace(total=97_887 << 20, reserved=638 << 20, used=used)


def test_two_gpus(two_max_q):
    first, second = facts.gpus()
    assert first == {
        "index": 0,
        "name": MAX_Q,
        "architecture": "12.0",
        "memory": 97_887 << 20,
        "driver": "580.126.09",
        "uuid": "GPU-00000000-1f2e-3d4c-5b6a-798877665544",
        "bus": "00000000:11:00.0",
        "mig": False,
        "pcie_generation": 5,
        "pcie_generation_card": 5,
        "pcie_width": 16,
        "pcie_width_now": 8,
        "power_limit": 300.0,
        "power_limit_most": 300.0,
    }
    assert second["uuid"] != first["uuid"]
    assert facts.nvidia()["cuda"] == "13.0"
    assert facts.nvidia()["links"] == [{"a": 0, "b": 1, "kind": "NODE", "nvlinks": 0}]


def test_the_load_is_no_part_of_the_facts(two_max_q):
    assert facts.gpu_load() == [
        {"index": 0, "used": 0, "processes": []},
        {"index": 1, "used": 90 * GIB, "processes": [{"pid": 4321, "used": 90 * GIB}]},
    ]


def test_what_a_driver_does_not_tell_is_none(two_max_q, monkeypatch):
    for name in (
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetMaxPcieLinkWidth",
        "nvmlDeviceGetTopologyCommonAncestor",
    ):
        monkeypatch.setattr(pynvml, name, not_supported)

    def only_first_version(handle, version=None):
        return not_supported() if version is not None else memory_info(handle)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", only_first_version)
    found = facts.nvidia()
    assert found["gpus"][0]["power_limit"] is None
    assert found["gpus"][0]["pcie_width"] is None
    assert found["gpus"][0]["memory"] == 97_887 << 20
    assert found["links"][0]["kind"] is None


def test_active_nvlinks_are_counted(two_max_q, monkeypatch):
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetNvLinkState", lambda handle, link: link < 4 or not_supported()
    )
    assert facts.nvidia()["links"][0]["nvlinks"] == 4


def gone(*_):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


def test_one_lost_gpu_does_not_hide_the_other(two_max_q, monkeypatch):
    def name(handle):
        return gone() if handle == 0 else MAX_Q

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", name)
    found = facts.nvidia()
    assert [gpu["index"] for gpu in found["gpus"]] == [1]
    assert found["lost"] == [{"index": 0, "error": "GPU is lost"}]
    assert found["error"] is None and found["links"] == []


def test_a_gpu_that_is_lost_to_the_load_only_is_left_out(two_max_q, monkeypatch):
    running = pynvml.nvmlDeviceGetComputeRunningProcesses
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetComputeRunningProcesses",
        lambda handle: gone() if handle == 0 else running(handle),
    )
    assert [load["index"] for load in facts.gpu_load()] == [1]


@pytest.mark.parametrize("silent", ["nvmlInit", "nvmlDeviceGetName"])
def test_a_driver_that_does_not_answer_is_not_waited_for(two_max_q, monkeypatch, silent):
    monkeypatch.setattr(nvml, "DEADLINE", 0.3)
    monkeypatch.setattr(pynvml, silent, lambda *_: time.sleep(600))
    assert facts.nvidia()["error"] == "NVML did not answer within 0 seconds"
    assert facts.gpus() == []


def test_a_library_that_crashes_takes_nobody_down(two_max_q, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda _: os.kill(os.getpid(), 9))
    assert facts.nvidia()["error"] == "the process that asked NVML died of it"
