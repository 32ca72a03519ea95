"""Whether a start that is silent computes, compiles or hangs: a pure function over samples.

A hang is told by what does not happen. Time alone proves nothing, nor does a line that is said
again and again: vLLM says every minute of a healthy start that a process waits for another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from runbook.units import duration

QUIET_SECONDS = 200.0
"""How long nothing must happen before a hang is concluded from what is seen meanwhile."""
STOPPED_SECONDS = 20.0
"""How long a process must have been stopped, or a rank be missing."""
BUSY_PERCENT, IDLE_PERCENT = 95, 5
"""A kernel that spins keeps its GPU at 100 %; one that no one uses is at 0 %."""
READ_BYTES = 8 * 2**20
"""What is read between two samples by processes that load something."""
FLAT_CORES = 0.1
FLAT_CORES_EACH = 0.03
"""CPU cores used by processes that only wait, in all and by each: their timers go on."""

Code = Literal[
    "compilation",
    "rank_stopped",
    "rank_dead",
    "autotune_deadlock",
    "ranks_deadlocked",
    "collective_hang",
]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes of a server do at a moment; counts are since the watch began."""

    at: float
    """Seconds."""
    phase: str = ""
    bar: str = ""
    """The progress bar that stands, as `warm up kernels 19/27`; empty if none does."""
    spoken: int = 0
    """Lines of progress in the log."""
    compilers: tuple[str, ...] = ()
    """Programs of compilers that run as children."""
    cpu: float = 0.0
    """CPU seconds of the whole process tree."""
    processes: int = 1
    runnable: int = 0
    """Of these, that run or would if a CPU were free (state R): on a busy machine they get little
    time."""
    cached: int = 0
    """Files and bytes in the JIT caches."""
    read: int = 0
    """Bytes read from files."""
    steps: int = 0
    """Steps of the engine, by its metrics, once it serves."""
    gpus: tuple[int, ...] | None = None
    """Use of each GPU in percent; empty if there are some and NVML does not tell; None if there
    are none."""
    on_disk: tuple[str, ...] = ()
    """Processes that wait for a disk (state D)."""
    stopped: tuple[str, ...] = ()
    """Processes that a signal has stopped (state T)."""
    gone: tuple[str, ...] = ()
    """Ranks that have ended while the server lives."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is concluded, and from what. All but a compilation end the start."""

    code: Code
    evidence: str


def judge(samples: Sequence[Sample]) -> Verdict | None:
    """The verdict on the samples so far, the latest last; None if the start goes on, or if what is
    seen is neither a hang nor a compilation."""
    now = samples[-1]
    if names := _for_long(samples, lambda sample: sample.stopped):
        return Verdict("rank_stopped", f"stopped (state T): {', '.join(names)}")
    if names := _for_long(samples, lambda sample: sample.gone):
        return Verdict("rank_dead", f"ended while the server lives: {', '.join(names)}")
    quiet = _quiet(samples)
    if len(quiet) < 2 or now.at - quiet[0].at < QUIET_SECONDS:
        compiles = len(samples) > 1 and _compiles(samples[-2], now)
        return Verdict("compilation", ", ".join(now.compilers)) if compiles else None
    known = [s.gpus for s in quiet if s.gpus]
    on_gpus = 2 * len(known) > len(quiet)
    evidence = _evidence(quiet)
    if on_gpus and _share(known, lambda use: min(use) >= BUSY_PERCENT) > 0.95:
        return Verdict("collective_hang", evidence)
    idle = all(s.gpus is None for s in quiet) or (
        on_gpus and _share(known, lambda use: max(use) <= IDLE_PERCENT) > 0.95
    )
    runs = sum(s.runnable > 0 for s in quiet) > len(quiet) / 2
    if idle and not runs and _flat(quiet[0], now) and not any(s.on_disk for s in quiet):
        tuning = now.phase == "autotune"
        return Verdict("autotune_deadlock" if tuning else "ranks_deadlocked", evidence)
    return None


def evidence(samples: Sequence[Sample]) -> str:
    """What was seen since the last sign of life, whatever it means."""
    return _evidence(_quiet(samples)) if len(samples) > 1 else ""


def _quiet(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples since the last sign of life."""
    start = len(samples) - 1
    while start > 0 and not _happened(samples[start - 1], samples[start]):
        start -= 1
    return samples[start:]


def _happened(before: Sample, after: Sample) -> bool:
    """Whether there is a sign of life between two samples. The use of CPUs is none by itself:
    a process that waits for a collective spins."""
    return (
        after.spoken != before.spoken
        or after.phase != before.phase
        or after.cached != before.cached
        or after.steps != before.steps
        or after.read - before.read > READ_BYTES
        or _compiles(before, after)
    )


def _compiles(before: Sample, after: Sample) -> bool:
    """Whether a compiler runs, and not only waits."""
    return bool(after.compilers) and (after.runnable > 0 or not _flat(before, after))


def _flat(before: Sample, after: Sample) -> bool:
    """Whether the processes only waited."""
    return _cores(before, after) < FLAT_CORES + FLAT_CORES_EACH * after.processes


def _cores(before: Sample, after: Sample) -> float:
    return (after.cpu - before.cpu) / max(after.at - before.at, 0.001)


def _for_long(
    samples: Sequence[Sample], names: Callable[[Sample], tuple[str, ...]]
) -> tuple[str, ...]:
    """The names that stand in all samples of the last `STOPPED_SECONDS`."""
    since = samples[-1].at - STOPPED_SECONDS
    if samples[0].at > since:
        return ()
    recent = [s for s in samples if s.at >= since]
    common = set.intersection(*(set(names(s)) for s in recent))
    return tuple(sorted(common))


def _share(values: list[tuple[int, ...]], holds: Callable[[tuple[int, ...]], bool]) -> float:
    return sum(map(holds, values)) / len(values)


def _evidence(quiet: Sequence[Sample]) -> str:
    """What the samples of a quiet time show, in words."""
    first, now = quiet[0], quiet[-1]
    if len(quiet) < 2:
        return "something happened just now"
    busiest = max((_cores(a, b) for a, b in pairwise(quiet)), default=0.0)
    seen = [
        f"for {duration(now.at - first.at)} no line of progress, no growth of the JIT caches",
        f"compilers: {', '.join(now.compilers) or 'none'}",
        f"CPU: {_cores(first, now):.2f} cores, at most {busiest:.2f}",
    ]
    uses = [s.gpus for s in quiet if s.gpus]
    if uses:
        ranges = [f"{min(use)} to {max(use)} %" for use in zip(*uses, strict=False)]
        seen.append(f"GPUs: {', '.join(ranges)}")
    if now.on_disk:
        seen.append(f"waiting for a disk: {', '.join(now.on_disk)}")
    if now.bar:
        seen.append(f"standing: {now.bar}")
    return "; ".join(seen)
