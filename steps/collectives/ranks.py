"""Runs the ranks of one variant of the probe, with a deadline, and says how it went."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from runbook.process import stop_session

PROBE = Path(__file__).with_name("probe.py")
SHARED = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast stays off: a program that uses it can put a host's GPUs out of service."""
TELLING = 3
"""Lines of a failed rank's output that are kept."""
POLL_SECONDS = 0.05

Verdict = Literal["right", "wrong", "hung", "failed", "unavailable"]


@dataclass(frozen=True)
class Variant:
    """One way to reduce: its name, its environment, and who does it (NCCL or gloo, or vLLM)."""

    name: str
    env: Mapping[str, str]
    method: Literal["backend", "custom", "pcie_ipc"] = "backend"
    patience: float = 1.0
    """How many times the deadline of the others it may take: one that is compiled and tuned."""


@dataclass
class Result:
    """How a variant went. `sizes`: of each size the slowest rank's seconds, and GB/s."""

    variant: str
    verdict: Verdict
    detail: str = ""
    sizes: list[dict[str, Any]] = field(default_factory=list)

    def dump(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ranks:
    """Who reduces: `world` processes of the interpreter `python` over `backend`, `sizes` bytes in
    turn, `deadline` seconds at most. `path` are folders that come before those of PATH."""

    python: str
    world: int
    backend: str
    env: Mapping[str, str]
    sizes: Sequence[int]
    deadline: float
    path: Sequence[str] = ()


def run(variant: Variant, of: Ranks, alive: Callable[[], None] = lambda: None) -> Result:
    """The variant's ranks from start to end; nothing of them is left. `alive` is called while they
    run."""
    deadline, world = of.deadline * variant.patience, of.world
    with tempfile.TemporaryDirectory() as scratch:
        ranks = _start(variant, of, deadline, Path(scratch))
        try:
            end = time.monotonic() + deadline
            # A rank that fails leaves the others waiting: the first failure ends all.
            while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
                if any(rank.poll() not in (None, 0) for rank in ranks):
                    break
                alive()
                time.sleep(POLL_SECONDS)
            codes = [rank.poll() for rank in ranks]
        finally:
            for rank in ranks:
                stop_session(rank.pid, grace=0.5)
                rank.wait()
        said = [Path(scratch, f"{rank}.out").read_text(errors="replace") for rank in range(world)]
        told = [Path(scratch, f"{rank}.err").read_text(errors="replace") for rank in range(world)]
    return _verdict(variant, codes, said, told, deadline)


def _start(
    variant: Variant, of: Ranks, deadline: float, scratch: Path
) -> list[subprocess.Popen[bytes]]:
    folders = [*of.path, str(Path(of.python).parent), os.environ.get("PATH", os.defpath)]
    path = {"PATH": os.pathsep.join(folders)}
    whole = {**os.environ, **of.env, **path, **SHARED, **variant.env}
    ranks = []
    for rank in range(of.world):
        argv = [of.python, str(PROBE), "--rank", str(rank), "--world", str(of.world)]
        argv += ["--meeting", str(scratch / "meeting"), "--backend", of.backend]
        argv += ["--method", variant.method, "--seconds", str(deadline), "--sizes"]
        argv += [str(size) for size in of.sizes]
        with (
            (scratch / f"{rank}.out").open("wb") as out,
            (scratch / f"{rank}.err").open("wb") as err,
        ):
            ranks.append(
                subprocess.Popen(argv, env=whole, stdout=out, stderr=err, start_new_session=True)
            )
    return ranks


def _verdict(
    variant: Variant,
    codes: Sequence[int | None],
    said: Sequence[str],
    told: Sequence[str],
    deadline: float,
) -> Result:
    for rank, code in enumerate(codes):
        if code not in (None, 0):
            lines = [line.strip() for line in told[rank].splitlines() if line.strip()]
            how = f"ended by signal {-code}" if code < 0 else f"exits {code}"
            detail = f"rank {rank} {how}: {' / '.join(lines[-TELLING:]) or 'it said nothing'}"
            return Result(variant.name, "failed", detail)
    waiting = [rank for rank, code in enumerate(codes) if code is None]
    if waiting:
        named = ", ".join(map(str, waiting))
        return Result(variant.name, "hung", f"ranks {named} were not done in {deadline:.0f} s")
    answers = [_answer(text) for text in said]
    if any(answer is None for answer in answers):
        return Result(variant.name, "failed", "a rank ended without an answer")
    known = [answer for answer in answers if answer is not None]
    if "unavailable" in known[0]:
        return Result(variant.name, "unavailable", known[0]["unavailable"])
    sizes = [_slowest(of_ranks) for of_ranks in zip(*(a["sizes"] for a in known), strict=True)]
    wrong = [size for size in sizes if size["wrong"]]
    if wrong:
        detail = "; ".join(f"{s['wrong']} values of {s['bytes']} bytes" for s in wrong)
        return Result(variant.name, "wrong", f"the sums are wrong: {detail}", sizes)
    return Result(variant.name, "right", "", sizes)


def _answer(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object: libraries print before it."""
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and ("sizes" in value or "unavailable" in value):
            return value
    return None


def _slowest(of_ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    slow = max(of_ranks, key=lambda one: float(one["seconds"]))
    return {**slow, "wrong": max(int(one["wrong"]) for one in of_ranks)}
