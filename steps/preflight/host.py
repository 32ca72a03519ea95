"""What is asked of the machine besides its GPUs. Each check yields what is not as it must be."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from runbook.protocol import Reason
from runbook.remedy import Remedy
from runbook.steps.common.facts import ISA_LEVELS
from runbook.steps.preflight.machine import Machine
from runbook.steps.preflight.measures import GB, GIB, MIB, version

ISA_RANK = {name: rank for rank, (name, _) in enumerate(reversed(ISA_LEVELS))}
REDUCED = (
    "this processor has no avx512_bf16, so the rehearsal is a reduced one: it serves a "
    "DeepSeek-V3 checkpoint, with other tensor names, another tokenizer, other parsers and other "
    "kernels than DeepSeek-V4"
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
        "free disk space, or choose another place with --workspace",
        "error" if short else "warning",
    )


def memory(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Enough memory, and enough of it free."""
    total = machine.memory["total"]
    if want.memory_gib is not None and total < want.memory_gib * GIB:
        yield Reason(
            "memory_too_small",
            f"the machine has {total / GIB:.1f} GiB of memory, needed are {want.memory_gib:g} GiB",
            "run on a machine with so much memory",
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
            "run on an x86-64 machine whose processor offers it",
        )
    elif want.draft == "dspark" and (want.variant == "v3" or not machine.cpu["avx512_bf16"]):
        lacks = not machine.cpu["avx512_bf16"]
        setting = "draft=mtp" if lacks else "variant=auto"
        yield Reason(
            "draft_impossible",
            "the DSpark draft is DeepSeek-V4's, which "
            + ("needs a processor with avx512_bf16" if lacks else "`variant: v3` is not"),
            Remedy("run", ("--set", setting), otherwise=f"set `{setting.replace('=', ': ')}`"),
        )
    elif want.variant == "v4" and not machine.cpu["avx512_bf16"]:
        yield Reason(
            "variant_impossible",
            "the DeepSeek-V4 rehearsal needs a processor with avx512_bf16",
            Remedy(
                "run",
                ("--set", "variant=auto"),
                text="{command} rehearses with what this processor can do",
                otherwise="set `variant: auto`",
            ),
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
        from runbook.steps.common import ports

        yield Reason(
            "port_in_use",
            f"port {want.port} is in use by {holder}",
            ports.another(want.host, want.port),
        )


def surroundings(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """Neither WSL nor a container comes between the driver and us unsaid."""
    if want.gpus is None:
        return
    if machine.wsl():
        yield Reason(
            "wsl",
            "this is WSL: no peer access between GPUs, no MIG, pinned memory is limited",
            "serve on Linux itself for full speed",
            "warning",
        )
    elif (container := machine.container()) is not None:
        yield Reason(
            "container",
            f"this is a container ({container}): it sees no processes of others on the GPUs",
            "start it with --gpus all --ipc=host --ulimit memlock=-1",
            "info",
        )


def lingering(machine: Machine, want: SimpleNamespace) -> Iterator[Reason]:
    """What the server leaves running outlives a log-out."""
    if want.port is not None and machine.logout_kills():
        yield Reason(
            "logout_kills",
            "systemd-logind ends all processes of a user who logs out (KillUserProcesses=yes), "
            "and this user does not linger: the server would end with your session",
            "`loginctl enable-linger`",
            "warning",
        )
