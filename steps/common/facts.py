"""Facts of this machine. Standard library only; NVML only where an NVIDIA driver may be.

Every fact is stable while the hardware and the driver are: what changes by the minute (memory in
use, running processes) is in `gpu_load`, never in a fact, so facts may enter fingerprints.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

Fact: TypeAlias = dict[str, Any]

PROC = Path("/proc")
SYSTEM_CPUS = Path("/sys/devices/system/cpu")
NVIDIA_TRACES = (
    "/proc/driver/nvidia/version",
    "/dev/nvidiactl",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
)
"""Any of these means that asking NVML is worth its import; none means that there is no driver."""

CGROUP = Path("/sys/fs/cgroup")
CGROUP_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""Of control groups version 2 and 1: files of the limit and of the use, and the entry of
memory.stat beside them that counts page cache which the kernel gives up first."""

ISA_LEVELS = (
    ("amx", ("amx_tile", "amx_bf16", "avx512_bf16")),
    ("avx512_bf16", ("avx512f", "avx512bw", "avx512_bf16")),
    ("avx512", ("avx512f", "avx512bw", "avx512vl")),
    ("avx2", ("avx2", "fma")),
)
"""From the richest to the plainest: the level's name and the flags of /proc/cpuinfo it takes."""


def cpu() -> Fact:
    """{model, cores, isa, avx2, avx512_bf16, amx}.

    `cores` are those this process may use; `isa` is the richest of `ISA_LEVELS`, else the
    architecture (`x86_64`, `aarch64`). Only the first processor's entry is read: the file grows
    by a kilobyte or so per processor, and the kernel composes it anew for each reader.
    """
    with (PROC / "cpuinfo").open(encoding="ascii", errors="replace") as file:
        entry: dict[str, str] = {}
        for line in file:
            if not line.strip():
                break
            key, _, value = line.partition(":")
            entry[key.strip()] = value.strip()
    flags = frozenset((entry.get("flags") or entry.get("Features") or "").split())
    isa = next(
        (name for name, needed in ISA_LEVELS if flags.issuperset(needed)), os.uname().machine
    )
    return {
        "model": entry.get("model name", os.uname().machine),
        "cores": len(os.sched_getaffinity(0)),
        "isa": isa,
        "avx2": "avx2" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx": isa == "amx",
    }


def physical_cores() -> list[int]:
    """The processors this process may use, one (the lowest) of each core's hardware threads."""
    allowed = sorted(os.sched_getaffinity(0))
    firsts = []
    seen: set[str] = set()
    for number in allowed:
        siblings = SYSTEM_CPUS / f"cpu{number}" / "topology" / "thread_siblings_list"
        try:
            core = siblings.read_text()
        except OSError:
            return allowed  # the kernel does not tell, as in some sandboxes
        if core not in seen:
            seen.add(core)
            firsts.append(number)
    return firsts


def memory() -> Fact:
    """{total, available} in bytes, both bounded by the control group this process is in."""
    values = {}
    for line in (PROC / "meminfo").read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            values[key] = int(rest.split()[0]) * 1024
    total, available = values["MemTotal"], values["MemAvailable"]
    limit, used = _cgroup_memory()
    if limit is not None and limit < total:
        total, available = limit, min(available, max(0, limit - used))
    return {"total": total, "available": available}


def _cgroup_memory() -> tuple[int | None, int]:
    """Limit and use of memory of the control group, in bytes; a container sees its own group at
    the root. Cache that the kernel gives up first is not counted as used, as container tools do
    it; in version 1 `no limit` is a number beyond all memory."""
    for limit_name, used_name, cache_key in CGROUP_MEMORY:
        limit_file = CGROUP / limit_name
        try:
            limit = limit_file.read_text().strip()
            used = int((CGROUP / used_name).read_text())
            statistics = (limit_file.parent / "memory.stat").read_text().split()
        except OSError:
            continue
        cache = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(cache_key, "0")
        return (None if limit == "max" else int(limit)), max(0, used - int(cache))
    return None, 0


def nvidia_driver_present() -> bool:
    """Whether there is a trace of an NVIDIA driver; asking NVML is pointless otherwise."""
    return any(Path(trace).exists() for trace in NVIDIA_TRACES)


def gpus() -> list[Fact]:
    """The NVIDIA GPUs in NVML's order (that of the PCI bus); empty without a working driver.

    Each: {index, name, architecture ("12.0"), memory (bytes), driver, uuid, bus, mig,
    pcie_generation and pcie_width (that card and slot reach), pcie_generation_card,
    pcie_width_now, power_limit and power_limit_most (watts)}; a value that the driver does not
    give is None.
    """
    return list(nvidia()["gpus"])


def gpu_links() -> list[Fact]:
    """How each pair of GPUs is linked, as in `nvidia`."""
    return list(nvidia()["links"])


def nvidia() -> Fact:
    """{driver, cuda, error, gpus, lost, links}: what `gpus` gives and what lies around it.

    `error` is NVML's own word where a driver left traces but does not work (a module that is not
    loaded, a library of another version), or that it does not answer; else None. `cuda` is the
    latest CUDA that the driver runs, as `13.0`. `lost` has an {index, error} for each GPU that
    cannot be asked. `links` has one {a, b, kind, nvlinks} per pair of the others: kind in the words
    of `nvidia-smi topo -m`, nvlinks the active NVLinks of `a`.
    """
    if not nvidia_driver_present():
        return {"driver": None, "cuda": None, "error": None, "gpus": [], "lost": [], "links": []}
    from runbook.steps.common import nvml

    return nvml.survey()


def gpu_load() -> list[Fact]:
    """What runs on each GPU now: {index, used (bytes), processes: [{pid, used}]}.

    `used` of a process is None where the driver hides it, as it does inside containers. No fact:
    it changes by the minute.
    """
    if not nvidia_driver_present():
        return []
    from runbook.steps.common import nvml

    return nvml.load()
