"""The checks: one small function each, by name, yielding what is not as it must be.

A check looks at the machine and at the inputs, changes nothing, and yields nothing when all is
well or when its threshold is null. `error` stops the run, `warning` only tells. Those in
`THOROUGH` start programs: they are made by `apply`, and by the look that finds nothing recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Reason
from runbook.steps.common.facts import ISA_LEVELS
from runbook.steps.preflight.machine import Machine
from runbook.steps.preflight.packages import packages

MIB = 1 << 20
GIB = 1 << 30
GB = 10**9

REHEARSE = "runbook run rehearsal"
"""What a machine without a GPU can do instead: the whole way, with a tiny model on the CPU."""
ISA_RANK = {name: rank for rank, (name, _) in enumerate(reversed(ISA_LEVELS))}
REDUCED = (
    "this processor has no avx512_bf16, so the rehearsal is a reduced one: it serves a "
    "DeepSeek-V3 checkpoint, with other tensor names, another tokenizer, other parsers and other "
    "kernels than DeepSeek-V4"
)
ACROSS_HOST = ("PHB", "NODE", "SYS")
"""Links over a PCIe host bridge or further: peer-to-peer there hangs on many machines."""


def suitable(machine: Machine, want: SimpleNamespace) -> list[dict[str, Any]]:
    """The GPUs that have the wanted architecture and memory."""
    return [
        gpu
        for gpu in machine.nvidia["gpus"]
        if want.gpu_architecture in (None, gpu["architecture"])
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
            f"install driver {want.driver_advised or want.driver} or later; without a GPU, "
            f"`{REHEARSE}`",
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
    if want.gpu_architecture:
        needed += f" of compute capability {want.gpu_architecture}"
    if want.gpu_memory_mib:
        needed += f" with {want.gpu_memory_mib:,} MiB each"
    seen = "; ".join(
        f"{gpu['name']} (compute capability {gpu['architecture']}, {gpu['memory'] // MIB:,} MiB)"
        for gpu in there
    )
    yield Reason(
        "gpus_missing",
        f"needed are {needed}, found {f'{len(fit)} of {len(there)}: {seen}' if there else 'none'}",
        "run on a machine that has them" + ("" if there else f"; without a GPU, `{REHEARSE}`"),
    )


def gpu_idle(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Nobody else uses the GPUs: their memory is counted on."""
    if want.gpus is None or machine.own_server is not None:
        return
    chosen = {gpu["index"] for gpu in suitable(machine, want)[: want.gpus]}
    for load in machine.gpu_load:
        if load["index"] not in chosen:
            continue
        pids = sorted(p["pid"] for p in load["processes"] if p["pid"] not in machine.own_pids)
        if pids:
            named = ", ".join(map(str, pids))
            yield Reason(
                "gpu_busy",
                f"GPU {load['index']} is used by process {named}",
                f"end what runs there (`kill {' '.join(map(str, pids))}`)",
            )
        elif load["used"] > want.gpu_used_mib * MIB:
            yield Reason(
                "gpu_memory_used",
                f"{load['used'] // MIB:,} MiB of GPU {load['index']} are in use, allowed are "
                f"{want.gpu_used_mib} MiB",
                "move the display to another card, or lower gpu_memory_utilization to 0.95",
            )


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


def disk(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Enough space where the workspace is; what it holds already counts."""
    if want.disk_gb is None:
        return
    advised = max(want.disk_gb, want.disk_advised_gb or 0)
    room = machine.disk_free()
    if room < advised * GB:
        room += machine.disk_taken()
    if room >= advised * GB:
        return
    short = room < want.disk_gb * GB
    needed = want.disk_gb if short else advised
    yield Reason(
        "disk_too_small" if short else "disk_not_advised",
        f"{room / GB:,.1f} GB of disk for {machine.workspace}, "
        f"{'needed' if short else 'advised'} are {needed:,g} GB",
        "free some, or choose another place with --workspace",
        "error" if short else "warning",
    )


def memory(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Enough memory, and enough of it free."""
    total = machine.memory["total"]
    if want.memory_gib is not None and total < want.memory_gib * GIB:
        yield Reason(
            "memory_too_small",
            f"the machine has {total / GIB:.1f} GiB of memory, needed are {want.memory_gib:g} GiB",
            "run on a machine that has it",
        )
    elif want.memory_advised_gib is not None and total < want.memory_advised_gib * GIB:
        yield Reason(
            "memory_not_advised",
            f"the machine has {total / GIB:.1f} GiB of memory, advised are "
            f"{want.memory_advised_gib:g} GiB",
            "expect a slower build: fewer compilers run at once",
            "warning",
        )
    free = machine.memory["available"]
    if (
        want.memory_available_gib is not None
        and machine.own_server is None
        and free < want.memory_available_gib * GIB
    ):
        yield Reason(
            "memory_in_use",
            f"{free / GIB:.1f} GiB of memory are free, needed are "
            f"{want.memory_available_gib:g} GiB",
            "end what takes it (`ps --sort=-rss -eo rss,pid,args | head`)",
        )


def shm(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """/dev/shm is large enough for the workers' messages."""
    if want.shm_gib is None:
        return
    size = machine.shm_size()
    if size is None or size < want.shm_gib * GIB:
        yield Reason(
            "shm_too_small",
            f"/dev/shm has {(size or 0) / GIB:.1f} GiB, advised are {want.shm_gib:g} GiB",
            f"start the container with --shm-size={want.shm_gib:g}g, or "
            f"`mount -o remount,size={want.shm_gib:g}G /dev/shm`",
            "warning",
        )


def memlock(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Memory may be locked without limit, as pinned loading wants."""
    if want.memlock_unlimited and (limit := machine.limit("memlock")) is not None:
        yield Reason(
            "memlock_limited",
            f"locked memory is limited to {limit // MIB:,} MiB",
            "set `ulimit -l unlimited` (/etc/security/limits.conf; --ulimit memlock=-1)",
            "warning",
        )


def nofile(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Enough files may be open at once."""
    if want.nofile is None:
        return
    limit = machine.limit("nofile")
    if limit is not None and limit < want.nofile:
        yield Reason(
            "nofile_low",
            f"{limit:,} files may be open at once, advised are {want.nofile:,}",
            f"set `ulimit -n {want.nofile}`",
            "warning",
        )


def compiler(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """gcc and g++ are there: to build, and for kernels that compile at run time."""
    if want.compiler is None:
        return
    missing = [name for name in ("gcc", "g++") if machine.program(name) is None]
    if missing:
        yield Reason(
            "no_compiler",
            f"{' and '.join(missing)} not found",
            "install gcc and g++ (`apt-get install build-essential`)",
        )


def compiler_version(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """gcc and g++ are new enough."""
    if want.compiler is None:
        return
    for name in ("gcc", "g++"):
        path = machine.program(name)
        if path is None:
            continue  # `compiler` has said so
        major = machine.compiler_version(path)
        if major is None or major < want.compiler:
            yield Reason(
                "compiler_too_old",
                f"{name} ({path}) is version {major or 'unknown'}, needed is {want.compiler} or "
                "later",
                f"install {name}-{want.compiler} and put it first on PATH",
            )


def python(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Python is new enough for the environments that steps make."""
    if want.python is not None and machine.python < version(want.python):
        yield Reason(
            "python_too_old",
            f"Python is {'.'.join(map(str, machine.python))}, needed is {want.python} or later",
            f"install Python {want.python} and install runbook with it",
        )


def python_headers(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Python.h is there: Triton compiles a launcher for each kernel at run time."""
    if want.python_headers and not machine.python_header.exists():
        yield Reason(
            "no_python_headers",
            f"{machine.python_header} is missing",
            "install Python's headers (`apt-get install python3-dev`)",
        )


def cpu_isa(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The processor has the instructions that the CPU build needs."""
    if want.cpu_isa is None:
        return
    rank = ISA_RANK.get(machine.cpu["isa"], -1)
    if rank < ISA_RANK[want.cpu_isa]:
        yield Reason(
            "cpu_isa_missing",
            f"the processor ({machine.cpu['model']}) offers {machine.cpu['isa']}, needed is "
            f"{want.cpu_isa}",
            "run on an x86-64 machine that has it",
        )
    elif want.variant == "v4" and not machine.cpu["avx512_bf16"]:
        yield Reason(
            "variant_impossible",
            "the DeepSeek-V4 rehearsal needs a processor with avx512_bf16",
            "`--set variant=auto` rehearses with what this processor can do",
        )
    elif want.variant == "auto" and not machine.cpu["avx512_bf16"]:
        yield Reason(
            "reduced_rehearsal",
            REDUCED,
            "rehearse on a Zen 4, Cooper Lake, Sapphire Rapids or later processor for the whole",
            "warning",
        )


def port(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """The server's port is free, or our own server has it."""
    if want.port is None:
        return
    holder = machine.port_holder(want.host, want.port)
    if holder is not None:
        yield Reason(
            "port_in_use",
            f"port {want.port} is in use by {holder}",
            "end it, or choose another port: `--set port=N`",
        )


CheckFunction = Callable[[Machine, SimpleNamespace], Iterable[Reason]]

CHECKS: dict[str, CheckFunction] = {
    "driver": driver,
    "gpus": gpus,
    "gpu_idle": gpu_idle,
    "topology": topology,
    "iommu": iommu,
    "disk": disk,
    "memory": memory,
    "shm": shm,
    "memlock": memlock,
    "nofile": nofile,
    "compiler": compiler,
    "compiler_version": compiler_version,
    "python": python,
    "python_headers": python_headers,
    "cpu_isa": cpu_isa,
    "port": port,
    "packages": packages,
}
"""All checks by name, in the order in which they are reported."""

THOROUGH = frozenset({"compiler_version", "packages"})


def chosen_links(machine: Machine, want: SimpleNamespace) -> list[dict[str, Any]]:
    """The links between the GPUs that will be used."""
    chosen = {gpu["index"] for gpu in suitable(machine, want)[: want.gpus]}
    return [link for link in machine.nvidia["links"] if {link["a"], link["b"]} <= chosen]


def version(text: str) -> tuple[int, ...]:
    """`580.126.09` as (580, 126, 9); what is no number ends it."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


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
