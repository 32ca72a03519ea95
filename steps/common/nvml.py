"""What NVML says of the GPUs: asked in a process of its own, since a driver that lost a GPU may
keep whoever asks for ever, and each GPU by itself, since one that is lost says nothing of others.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Fact: TypeAlias = dict[str, Any]

DEADLINE = 20.0
"""Seconds for an answer. Without the persistence daemon eight cards take some seconds to wake."""
HUNG = "NVML did not answer"
LINK_KINDS = {0: "INT", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvmlGpuTopologyLevel_t in the words of `nvidia-smi topo -m`."""


def survey() -> Fact:
    """{driver, cuda, error, gpus, lost, links}, as `facts.nvidia` describes it."""
    nothing: Fact = {
        "driver": None,
        "cuda": None,
        "error": None,
        "gpus": [],
        "lost": [],
        "links": [],
    }
    return nothing | _asked(_survey)


def load() -> list[Fact]:
    """What runs on each GPU, as `facts.gpu_load` describes it."""
    return list(_asked(_load).get("load", []))


def devices(env: Mapping[str, str]) -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES of an environment names; None if it hides nothing."""
    named = env.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else None


def visible(gpus: Iterable[Fact], named: Collection[str] | None) -> list[Fact]:
    """Those that CUDA_VISIBLE_DEVICES would show: named by their number or the beginning of their
    UUID; all if none is named."""
    if named is None:
        return list(gpus)
    return [
        gpu
        for gpu in gpus
        if any(
            gpu["uuid"].startswith(name) if name.startswith("GPU-") else name == str(gpu["index"])
            for name in map(str.strip, named)
        )
    ]


def between(links: Iterable[Fact], gpus: Iterable[Fact]) -> list[Fact]:
    """The links of which both ends are among these GPUs."""
    own = {gpu["index"] for gpu in gpus}
    return [link for link in links if own >= {link["a"], link["b"]}]


def taken(gpus: Iterable[Fact], ranks: int) -> list[Fact]:
    """The largest, one for each rank."""
    return sorted(gpus, key=lambda gpu: -gpu["memory"])[:ranks]


def _asked(question: Callable[[Any], Fact]) -> Fact:
    """The answer to a question, or {error}: why there is none within the deadline."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = json.dumps(_answer(question)).encode()
            while answer:
                answer = answer[os.write(writing, answer) :]
        finally:
            os._exit(0)
    os.close(writing)
    try:
        said = read_all(reading, time.monotonic() + DEADLINE)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        # One that waits in the kernel cannot be reaped now: init does it when this process ends.
        os.waitpid(child, 0 if said is not None else os.WNOHANG)
    if said is None:
        return {"error": f"{HUNG} within {DEADLINE:.0f} seconds"}
    try:
        found: Fact = json.loads(said)
    except ValueError:
        return {"error": "the process that asked NVML died of it"}
    return found


def read_all(descriptor: int, end: float) -> bytes | None:
    """All that is written until the other side closes; None past the deadline."""
    said = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, 1 << 16)
        if not part:
            return said
        said += part


def _answer(question: Callable[[Any], Fact]) -> Fact:
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as failure:
        return {"error": str(failure)}
    try:
        return question(pynvml)
    except pynvml.NVMLError as failure:
        return {"error": str(failure)}
    finally:
        pynvml.nvmlShutdown()


def _survey(nvml: Any) -> Fact:
    driver = nvml.nvmlSystemGetDriverVersion()
    cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    gpus, handles, lost = [], {}, []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(_gpu(nvml, index, handle, driver))
            handles[index] = handle
        except nvml.NVMLError as failure:
            lost.append({"index": index, "error": str(failure)})
    return {
        "driver": driver,
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        "gpus": gpus,
        "lost": lost,
        "links": list(_links(nvml, handles)),
    }


def _load(nvml: Any) -> Fact:
    load = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
            used = _memory(nvml, handle).used
        except nvml.NVMLError:
            continue  # lost: the survey says so
        owners = [{"pid": p.pid, "used": p.usedGpuMemory} for p in processes]
        load.append({"index": index, "used": used, "processes": owners})
    return {"load": load}


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the driver answers, None where it does not support the question on this device."""
    try:
        return function(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return None


def _memory(nvml: Any, handle: Any) -> Any:
    """NVML's second memory structure counts what the driver reserves apart from `used`."""
    versioned = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
    return versioned if versioned is not None else nvml.nvmlDeviceGetMemoryInfo(handle)


def _gpu(nvml: Any, index: int, handle: Any, driver: str) -> Fact:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    limit = _ask(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    limits = _ask(nvml, nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    mig = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return {
        "index": index,
        "name": nvml.nvmlDeviceGetName(handle),
        "architecture": f"{major}.{minor}",
        "memory": _memory(nvml, handle).total,
        "driver": driver,
        "uuid": nvml.nvmlDeviceGetUUID(handle),
        "bus": nvml.nvmlDeviceGetPciInfo(handle).busId,
        "mig": bool(mig and mig[0]),
        # Of card and slot together, and of the card alone. What the link runs at now is no fact:
        # it sleeps at generation 1.
        "pcie_generation": _ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        "pcie_generation_card": _ask(nvml, nvml.nvmlDeviceGetGpuMaxPcieLinkGeneration, handle),
        "pcie_width": _ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        "pcie_width_now": _ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        "power_limit": None if limit is None else limit / 1000,
        "power_limit_most": None if limits is None else limits[1] / 1000,
    }


def _links(nvml: Any, handles: dict[int, Any]) -> Iterator[Fact]:
    numbers = sorted(handles)
    for a in numbers:
        for b in (n for n in numbers if n > a):
            asked = nvml.nvmlDeviceGetTopologyCommonAncestor
            try:
                kind = LINK_KINDS.get(_ask(nvml, asked, handles[a], handles[b]))
            except nvml.NVMLError:
                kind = None  # one of them was lost just now
            yield {"a": a, "b": b, "kind": kind, "nvlinks": _nvlinks(nvml, handles[a])}


def _nvlinks(nvml: Any, handle: Any) -> int:
    """Active NVLinks of a device. No RTX PRO 6000 has any; NVML then answers `not supported`."""
    active = 0
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            active += nvml.nvmlDeviceGetNvLinkState(handle, link) == nvml.NVML_FEATURE_ENABLED
        except nvml.NVMLError:
            break  # past the last link that this device has
    return active
