"""Samples of what a server's processes do: from /proc, the JIT caches and NVML."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.process import Identity
from runbook.steps.common.starting.watch import Sample

COMPILERS = frozenset(
    {"nvcc", "cicc", "ptxas", "cudafe++", "fatbinary", "nvlink", "nvrtc_compile", "ninja", "cmake"}
    | {"gcc", "g++", "cc1", "cc1plus", "as", "ld", "collect2", "clang", "clang++", "rustc"}
)
RANKS = ("VLLM::EngineCore", "VLLM::Worker")
"""How vLLM's titles of processes without which it cannot go on begin (setproctitle):
`VLLM::EngineCore`, `VLLM::Worker_TP0`."""
GPU_SECONDS = 2.0
GPU_STALE_SECONDS = 15.0
"""NVML may hang with the driver: what it said so long ago says nothing any more."""


@dataclass(frozen=True, slots=True)
class Task:
    """A living process, by the fields of /proc/PID/stat (proc(5))."""

    pid: int
    name: str
    state: str
    parent: int
    session: int
    ticks: int


class Sampler:
    """Takes samples of one server: the processes of its session and all they started."""

    def __init__(self, leader: Identity, caches: Iterable[Path], gpus: Gpus | None = None) -> None:
        self.leader = leader
        self.caches = sorted(set(caches))
        self.gpus = gpus
        self.ticks: dict[int, int] = {}
        self.cpu = 0.0
        self.ranks: dict[int, str] = {}

    def take(self, **told: int | str) -> Sample:
        """A sample of now; `told` is what the log and the server's metrics say."""
        tasks = tree(self.leader.pid, all_tasks())
        self._count(tasks)
        pids = {task.pid for task in tasks}
        self.ranks |= {t.pid: title for t in tasks if (title := _title(t.pid)).startswith(RANKS)}
        return Sample(
            at=time.monotonic(),
            compilers=tuple(sorted({t.name for t in tasks if t.name in COMPILERS})),
            cpu=self.cpu,
            processes=len(tasks),
            runnable=sum(task.state == "R" for task in tasks),
            cached=sum(map(written, self.caches)),
            read=sum(map(_bytes_read, pids)),
            gpus=self.gpus.use(pids) if self.gpus is not None else None,
            on_disk=self._named(t for t in tasks if t.state == "D"),
            stopped=self._named(t for t in tasks if t.state == "T"),
            gone=tuple(f"{name} ({pid})" for pid, name in self.ranks.items() if pid not in pids),
            **told,  # type: ignore[arg-type]
        )

    def _count(self, tasks: list[Task]) -> None:
        """Add what each process used since the last sample, so that the sum never falls."""
        tick = os.sysconf("SC_CLK_TCK")
        for task in tasks:
            self.cpu += max(0, task.ticks - self.ticks.get(task.pid, 0)) / tick
        self.ticks = {task.pid: task.ticks for task in tasks}

    def _named(self, tasks: Iterable[Task]) -> tuple[str, ...]:
        return tuple(f"{self.ranks.get(t.pid, t.name)} ({t.pid})" for t in tasks)


class Gpus:
    """The use of the GPUs, asked for by a thread of its own: NVML may hang with the driver."""

    def __init__(self) -> None:
        self.seen: tuple[float, list[tuple[int, frozenset[int]]]] = (0.0, [])
        self.ended = threading.Event()
        threading.Thread(target=self._ask, daemon=True).start()

    def use(self, pids: set[int]) -> tuple[int, ...]:
        """The use in percent of the GPUs that these processes use, of all if NVML does not know
        the processes (as in a container); empty if NVML does not answer."""
        at, gpus = self.seen
        if time.monotonic() - at > GPU_STALE_SECONDS:
            return ()
        own = [percent for percent, users in gpus if users & pids]
        return tuple(own or [percent for percent, _ in gpus])

    def close(self) -> None:
        self.ended.set()

    def _ask(self) -> None:
        import pynvml  # type: ignore[import-untyped]

        try:
            pynvml.nvmlInit()
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())
            ]
            while not self.ended.wait(GPU_SECONDS):
                self.seen = (time.monotonic(), [_gpu(pynvml, handle) for handle in handles])
        except pynvml.NVMLError:
            return  # no driver, or one that is gone: `seen` grows old


def _gpu(pynvml: Any, handle: object) -> tuple[int, frozenset[int]]:
    """(use in percent, processes) of one GPU."""
    percent = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    users = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return percent, frozenset(process.pid for process in users)


def tree(leader: int, tasks: list[Task]) -> list[Task]:
    """The living processes of a session, and their descendants in other sessions."""
    found = {t.pid: t for t in tasks if t.session == leader and t.state not in "ZX"}
    while more := [t for t in tasks if t.pid not in found and t.parent in found]:
        found |= {t.pid: t for t in more}
    return [t for t in found.values() if t.state not in "ZX"]


def all_tasks() -> list[Task]:
    return [task for entry in os.listdir("/proc") if entry.isdigit() for task in _task(entry)]


def _task(pid: str) -> Iterator[Task]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return  # it has ended
    begin, end = text.index("("), text.rindex(")")
    fields = text[end + 2 :].split()
    used = sum(map(int, fields[11:15]))  # user and system time, its own and of awaited children
    yield Task(int(pid), text[begin + 1 : end], fields[0], int(fields[1]), int(fields[3]), used)


def _title(pid: int) -> str:
    """The command line's first word, which is the title that a process gave itself."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return words.split(b"\0")[0].decode(errors="replace").strip()


def _bytes_read(pid: int) -> int:
    """Bytes that a process has read from files, from the page cache or not."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    values = dict(line.split(": ") for line in text.splitlines())
    return int(values["rchar"]) + int(values["read_bytes"])


def written(folder: Path) -> int:
    """Bytes and files in a folder: any file that is written changes it, some way or other."""
    total = 0
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        total += 1 + entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # not there yet, or removed meanwhile
    return total


def open_gpus() -> Gpus | None:
    """The GPUs of this machine, if it has a driver."""
    from runbook.steps.common.facts import NVIDIA_TRACES

    return Gpus() if any(os.path.exists(trace) for trace in NVIDIA_TRACES) else None
