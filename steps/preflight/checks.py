"""The checks: one small function each, by name, yielding what is not as it must be.

A check looks at the machine and at the inputs, changes nothing, and yields nothing when all is
well or when its threshold is null. `error` stops the run, `warning` only tells. Those in
`THOROUGH` start programs: they are made by `apply`, and by the look that finds nothing recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

from runbook.protocol import Reason
from runbook.steps.preflight import gpu_state, gpus, host
from runbook.steps.preflight.machine import Machine
from runbook.steps.preflight.packages import packages

CheckFunction = Callable[[Machine, SimpleNamespace], Iterable[Reason]]

CHECKS: dict[str, CheckFunction] = {
    "driver": gpus.driver,
    "gpus": gpus.gpus,
    "gpu_unbound": gpu_state.unbound,
    "gpu_lost": gpu_state.lost,
    "gpu_mig": gpu_state.mig,
    "gpu_power": gpu_state.power,
    "pcie": gpu_state.pcie,
    "cuda": gpu_state.cuda,
    "gpu_idle": gpus.gpu_idle,
    "topology": gpus.topology,
    "iommu": gpus.iommu,
    "acs": gpus.acs,
    "gpu_xid": gpu_state.xid,
    "surroundings": host.surroundings,
    "lingering": host.lingering,
    "disk": host.disk,
    "memory": host.memory,
    "shm": host.shm,
    "memlock": host.memlock,
    "nofile": host.nofile,
    "compiler": host.compiler,
    "compiler_version": host.compiler_version,
    "python": host.python,
    "python_headers": host.python_headers,
    "cpu_isa": host.cpu_isa,
    "port": host.port,
    "packages": packages,
}
"""All checks by name, in the order in which they are reported."""

THOROUGH = frozenset({"compiler_version", "packages"})


def names(want: SimpleNamespace) -> list[str]:
    """The checks that the inputs ask for."""
    return [n for n in CHECKS if n in (want.checks or CHECKS) and n not in want.skip]


def examine(machine: Machine, want: SimpleNamespace, *, thorough: bool) -> list[Reason]:
    """What the wanted checks find, those that start programs only if `thorough`."""
    return [
        reason
        for name in names(want)
        if thorough or name not in THOROUGH
        for reason in CHECKS[name](machine, want)
    ]
