"""What is asked of the GPUs and their driver. Each check yields what is not as it must be."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Reason
from runbook.remedy import Remedy
from runbook.steps.common.nvml import between, visible
from runbook.steps.preflight.machine import Machine
from runbook.steps.preflight.measures import MIB, or_rehearse, version

ACROSS_HOST = ("PHB", "NODE", "SYS")
"""Links over a PCIe host bridge or further: peer-to-peer there hangs on many machines."""


def suitable(machine: Machine, want: SimpleNamespace) -> list[dict[str, Any]]:
    """The GPUs to choose from that have the wanted name, architecture and memory."""
    return [
        gpu
        for gpu in visible(machine.nvidia["gpus"], want.devices or None)
        if (want.gpu_name or "") in gpu["name"]
        and want.gpu_architecture in (None, gpu["architecture"])
        and gpu["memory"] >= (want.gpu_memory_mib or 0) * MIB
    ]


def driver(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """An NVIDIA driver that works and is new enough."""
    if want.driver is None:
        return
    nvidia = machine.nvidia
    if nvidia["error"] is not None:
        yield Reason(
            "driver_broken",
            f"the NVIDIA driver does not work: {nvidia['error']}",
            "restart the machine after a driver update; in a container, pass the GPUs in",
        )
    elif nvidia["driver"] is None:
        yield Reason(
            "no_driver",
            "there is no NVIDIA driver",
            or_rehearse(f"install driver {want.driver_advised or want.driver} or later"),
        )
    elif version(nvidia["driver"]) < version(want.driver):
        yield Reason(
            "driver_too_old",
            f"the NVIDIA driver is {nvidia['driver']}, needed is {want.driver} or later",
            f"install driver {want.driver_advised or want.driver}",
        )
    elif want.driver_advised and version(nvidia["driver"]) < version(want.driver_advised):
        yield Reason(
            "driver_not_advised",
            f"the NVIDIA driver is {nvidia['driver']}; CUDA 13 needs {want.driver_advised}",
            f"install driver {want.driver_advised}",
            "warning",
        )


def gpus(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Enough GPUs of the wanted architecture and memory."""
    if want.gpus is None:
        return
    there = machine.nvidia["gpus"]
    fit = suitable(machine, want)
    if len(fit) >= want.gpus:
        return
    needed = f"{want.gpus} GPUs"
    if want.gpu_name:
        needed += f" named {want.gpu_name}"
    if want.gpu_architecture:
        needed += f" of compute capability {want.gpu_architecture}"
    if want.gpu_memory_mib:
        needed += f" with {want.gpu_memory_mib:,} MiB each"
    seen = "; ".join(
        f"{gpu['name']} (compute capability {gpu['architecture']}, {gpu['memory'] // MIB:,} MiB)"
        for gpu in there
    )
    if want.devices:
        needed += f" among {', '.join(want.devices)}"
    yield Reason(
        "gpus_missing",
        f"needed are {needed}{_others(want)}, found "
        f"{f'{len(fit)} of {len(there)}: {seen}' if there else 'none'}",
        "run on a machine with such GPUs"
        if there
        else or_rehearse("run on a machine with such GPUs"),
    )


def _others(want: SimpleNamespace) -> str:
    return f" (or those of {', '.join(want.others)})" if want.others else ""


def gpu_idle(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Nobody else uses the GPUs: their memory is counted on."""
    if want.gpus is None or machine.own_server is not None:
        return
    chosen = {gpu["index"] for gpu in suitable(machine, want)[: want.gpus]}
    for load in machine.gpu_load:
        if load["index"] not in chosen:
            continue
        if pids := _strangers(machine, load):
            named = ", ".join(machine.owner(pid) for pid in pids)
            end = f"end what runs there (`kill {' '.join(map(str, pids))}`)"
            yield Reason(
                "gpu_busy",
                f"GPU {load['index']} is used by process {named}",
                _instead(machine, want, end),
            )
        elif load["used"] > want.gpu_used_mib * MIB:
            display = "move the display to another card, or lower gpu_memory_utilization to 0.95"
            yield Reason(
                "gpu_memory_used",
                f"{load['used'] // MIB:,} MiB of GPU {load['index']} are in use, allowed are "
                f"{want.gpu_used_mib} MiB",
                _instead(machine, want, display),
            )


def _strangers(machine: Machine, load: dict[str, Any]) -> list[int]:
    return sorted(p["pid"] for p in load["processes"] if p["pid"] not in machine.own_pids)


def _instead(machine: Machine, want: SimpleNamespace, otherwise: str) -> Remedy | str:
    """To take other GPUs of the kind, if enough of them are idle and the document lets one."""
    anywhere = SimpleNamespace(**{**vars(want), "devices": []})
    idle = {
        load["index"]
        for load in machine.gpu_load
        if not _strangers(machine, load) and load["used"] <= want.gpu_used_mib * MIB
    }
    free = [gpu["index"] for gpu in suitable(machine, anywhere) if gpu["index"] in idle]
    if len(free) < want.gpus:
        return otherwise
    devices = f"devices={','.join(map(str, free[: want.gpus]))}"
    text = f"take idle ones, {{command}}, or {otherwise}"
    return Remedy("run", ("--set", devices), text=text, otherwise=otherwise)


def topology(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """How the GPUs are connected; tells what follows for NCCL."""
    if want.gpus is None or want.gpus < 2:
        return
    for link in chosen_links(machine, want):
        if link["nvlinks"] == 0 and link["kind"] in ACROSS_HOST:
            yield Reason(
                "gpus_across_host_bridge",
                f"GPUs {link['a']} and {link['b']} are connected by {link['kind']} only; "
                "NCCL_P2P_DISABLE=1 is set for the server, peer-to-peer hangs there",
                "put both GPUs on one PCIe switch, if the board has one",
                "warning",
            )


def iommu(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The IOMMU does not stand between the GPUs."""
    if want.gpus is None or want.gpus < 2:
        return
    chosen = suitable(machine, want)[: want.gpus]
    if any(machine.iommu_translates(gpu["bus"]) for gpu in chosen):
        yield Reason(
            "iommu_translates",
            "the IOMMU translates what the GPUs send each other: the first collective may hang",
            "add `iommu=pt` to the kernel's command line and restart",
            "warning",
        )


def acs(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """No bridge sends what the GPUs tell each other over PCIe up to the host first."""
    links = chosen_links(machine, want)
    if not links or all(link["nvlinks"] for link in links):
        return
    chosen = suitable(machine, want)[: want.gpus]
    bridges = {name for gpu in chosen for name in machine.redirecting_bridges(gpu["bus"])}
    if bridges:
        yield Reason(
            "acs_redirects",
            f"ACS of {', '.join(sorted(bridges))} sends what the GPUs tell each other through the "
            "host: peer access is slow there, or hangs",
            "switch ACS off in the firmware; until the next restart, as root, "
            f"`setpci -s {min(bridges)} ECAP_ACS+6.w=0` does, and so for each",
            "warning",
        )


def chosen_links(machine: Machine, want: SimpleNamespace) -> list[dict[str, Any]]:
    """The links between the GPUs that will be used."""
    return between(machine.nvidia["links"], suitable(machine, want)[: want.gpus])
