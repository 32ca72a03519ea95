"""In what state the GPUs are: lost, unbound, divided, held back by power limit or slot."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Reason
from runbook.steps.common.shipped import shipped
from runbook.steps.preflight.gpus import suitable
from runbook.steps.preflight.machine import Machine
from runbook.steps.preflight.measures import version
from runbook.units import duration


def lost(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Every GPU of the machine can be asked; those that can are judged all the same."""
    if want.gpus is None:
        return
    enough = len(suitable(machine, want)) >= want.gpus
    for gone in machine.nvidia["lost"]:
        yield Reason(
            "gpu_lost",
            f"GPU {gone['index']} cannot be asked: {gone['error']}",
            "look for `Xid` in `dmesg`, check seat and power cable, restart the machine",
            "warning" if enough else "error",
        )


def unbound(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The driver has every NVIDIA card that is on the PCI bus."""
    nvidia = machine.nvidia
    if want.gpus is None or nvidia["gpus"] or nvidia["lost"]:
        return
    if nvidia["driver"] is None and nvidia["error"] is None:
        return  # none is installed: `driver` has said so
    cards = machine.nvidia_cards()
    if not cards:
        return
    if not machine.module_loaded("nvidia"):
        cause = "the kernel module nvidia is not loaded"
        if machine.secure_boot():
            cause += ", and secure boot refuses modules that are not signed"
        remedy = "`modprobe nvidia`; with secure boot, sign the module or switch secure boot off"
    elif machine.module_flavour() == "proprietary":
        cause = "the proprietary kernel module does not drive Blackwell cards"
        remedy = "install the open kernel module (nvidia-open) of the same version"
    else:
        cause = "the driver did not take it: fallen off the bus, or its memory does not fit"
        remedy = "read `dmesg` for NVRM; in the firmware allow Above 4G decoding and Resizable BAR"
    yield Reason(
        "gpu_unbound", f"the driver has no GPU, though {', '.join(cards)} is there: {cause}", remedy
    )


def xid(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The driver told of no fault of the chosen GPUs since the machine was started."""
    chosen = {
        gpu["bus"][-12:].lower().partition(".")[0]: gpu["index"] for gpu in _chosen(machine, want)
    }
    if not chosen:
        return
    met: dict[tuple[int, int], list[Any]] = {}
    for error in machine.xids():
        if error.bus in chosen and error.number in _known_xids():
            met.setdefault((chosen[error.bus], error.number), []).append(error)
    for (index, number), errors in met.items():
        known, last = _known_xids()[number], errors[-1]
        times = f"{len(errors)} times, last " if len(errors) > 1 else ""
        yield Reason(
            "gpu_xid",
            f"the driver told of GPU {index}: {known['means']} (Xid {number}), {times}"
            f"{duration(last.ago)} ago" + (f": {last.told}" if last.told else ""),
            known["mends"],
            "warning",
        )


@lru_cache(maxsize=1)
def _known_xids() -> dict[int, dict[str, str]]:
    from importlib import resources

    found: dict[int, dict[str, str]]
    found = shipped(resources.files("runbook.steps.preflight") / "xids.yaml")
    return found


def mig(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The GPUs are whole: slices of one cannot reduce among each other."""
    for gpu in _chosen(machine, want):
        if gpu.get("mig"):
            yield Reason(
                "gpu_divided",
                f"GPU {gpu['index']} is divided (MIG is on)",
                f"`nvidia-smi -i {gpu['index']} -mig 0`, as root and with nothing running",
            )


def power(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The power limit is the card's own; figures of profiles hold for that."""
    for gpu in _chosen(machine, want):
        limit, most = gpu.get("power_limit"), gpu.get("power_limit_most")
        if limit and most and limit < most:
            yield Reason(
                "power_limited",
                f"GPU {gpu['index']} is limited to {limit:.0f} of {most:.0f} W; 400 of 600 W cost "
                "23 to 34 % of the rate of many streams",
                f"`nvidia-smi -i {gpu['index']} -pl {most:.0f}` as root, if cooling allows",
                "warning",
            )


def pcie(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The slot gives what the card can: collectives without NVLink go through it."""
    for gpu in _chosen(machine, want):
        told = []
        now, width = gpu.get("pcie_width_now"), gpu.get("pcie_width")
        if now and width and now < width:
            told.append(f"{now} of {width} lanes")
        slot, card = gpu.get("pcie_generation"), gpu.get("pcie_generation_card")
        if slot and card and slot < card:
            told.append(f"generation {slot} of {card}")
        if told:
            yield Reason(
                "pcie_below_card",
                f"the slot of GPU {gpu['index']} gives it {' and '.join(told)}",
                "put it into a slot of full width, and set the slot's generation in the firmware",
                "warning",
            )


def cuda(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The driver runs the CUDA that the build is made for."""
    ceiling = machine.nvidia["cuda"]
    if want.cuda is None or ceiling is None or version(ceiling) >= version(want.cuda):
        return
    yield Reason(
        "cuda_above_driver",
        f"the driver runs CUDA up to {ceiling}, the build is for {want.cuda}",
        "install a later driver" + (f", {want.driver} or later" if want.driver else ""),
    )


def _chosen(machine: Machine, want: SimpleNamespace) -> list[dict[str, Any]]:
    return suitable(machine, want)[: want.gpus] if want.gpus else []
