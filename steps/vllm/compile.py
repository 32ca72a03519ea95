"""Compile a patched source into a wheel."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common import facts, tether

GIB = 1 << 30
# One nvcc child of vLLM takes up to 10 GB (measured: 8 is rarely passed, never by all at once).
_GIB_PER_JOB = 8
_GIB_RESERVED = 4
_NINJA = re.compile(r"\s*\[(\d+)/(\d+)\]")
_KILLED = re.compile(
    r"fatal error: Killed|Killed signal terminated program|signal 9|\bKilled\b|std::bad_alloc"
    r"|[Oo]ut of memory|Cannot allocate memory"
)


def compile_wheel(ctx: Context, folder: Path, staging: Path) -> Path:
    """Build the wheel in place. Progress is ninja's."""
    source: dict[str, Any] = ctx.inputs.source
    jobs = source["jobs"] or default_jobs(facts.memory()["available"], len(os.sched_getaffinity(0)))
    out = staging / "compiled"
    lines: list[str] = []

    def follow(line: str) -> None:
        if count := _NINJA.match(line):
            ctx.progress(int(count[1]), int(count[2]), "objects", f"compile, {jobs} at a time")
        else:
            lines.append(line)

    try:
        ctx.run(
            tether.command(
                "uv", "build", "--wheel", "--no-build-isolation", "--offline", "--out-dir", out,
                "--python", folder / "venv" / "bin" / "python", folder / "src",
            ),
            env=build_environment(source, folder, jobs, os.environ),
            on_line=follow,
        )  # fmt: skip
    except StepFailure as failure:
        raise _explained(failure, lines, jobs) from failure
    (path,) = out.glob("*.whl")
    return path


def build_environment(
    source: Mapping[str, Any], folder: Path, jobs: int, environ: Mapping[str, str]
) -> dict[str, str]:
    """What the build is told: the toolkit, the architectures, how much to do at a time."""
    result = dict(source["env"])
    path = [str(folder / "venv" / "bin")]
    if source["cuda_home"]:
        result["CUDA_HOME"] = source["cuda_home"]
        path.append(f"{source['cuda_home']}/bin")
    path += source["path"]
    path.append(result.get("PATH") or environ.get("PATH", os.defpath))
    result["PATH"] = os.pathsep.join(path)
    if source["arch_list"]:
        result["TORCH_CUDA_ARCH_LIST"] = source["arch_list"]
    result["MAX_JOBS"] = result["CMAKE_BUILD_PARALLEL_LEVEL"] = str(jobs)
    # setup.py divides MAX_JOBS by it, and threads help only with several architectures.
    result.setdefault("NVCC_THREADS", "1")
    result.setdefault("CMAKE_GENERATOR", "Ninja")
    # An archive has no git history to read a version from; the wheel gets its own afterwards.
    result.setdefault("VLLM_VERSION_OVERRIDE", source["version"])
    result.setdefault("SETUPTOOLS_SCM_PRETEND_VERSION", source["version"])
    # Let ccache know files of other workspaces again.
    result.setdefault("CCACHE_BASEDIR", str(folder))
    result.setdefault("CCACHE_NOHASHDIR", "1")
    return result


def default_jobs(available: int, cores: int) -> int:
    """Compiler processes for so many bytes of free memory: cores alone would run out of it."""
    return max(1, min(cores, (available // GIB - _GIB_RESERVED) // _GIB_PER_JOB))


def _explained(failure: StepFailure, lines: Sequence[str], jobs: int) -> StepFailure:
    """Name the usual cause of a failed compile, too little memory, and the first error else."""
    if any(_KILLED.search(line) for line in lines):
        fewer = max(1, jobs // 2)
        return StepFailure(
            f"the compiler ran out of memory with {jobs} processes",
            code="out_of_memory",
            cause=next(line for line in lines if _KILLED.search(line)).strip(),
            remedy=Remedy(
                "run",
                text=f"set `source.jobs` to {fewer}, then {{command}}: compiled objects are kept",
            ),
        )
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror\b", line, re.I)), None)
    return StepFailure(
        "vLLM did not compile",
        code="compile_failed",
        cause="\n".join(lines[first : first + 15]) if first is not None else failure.cause,
        remedy=Remedy("logs", ("{step}", "--errors")),
    )
