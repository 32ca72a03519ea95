"""Compile a pinned, patched source.

```
<workspace>/build.<key>/src     unpacked and patched; compiled in place, so a next run goes on
<workspace>/build.<key>/venv    the build requirements, by hash
```
The folder goes when the wheel is in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runbook.protocol import Context, StepFailure
from runbook.steps.common import tether
from runbook.steps.common.store import Store, key_of, sha256_file
from runbook.steps.vllm import environment, packages
from runbook.steps.vllm import wheel as wheels
from runbook.steps.vllm.archive import obtain, unpack
from runbook.steps.vllm.build import NAME, VERSION_FILE, Built, drifted, touched, version_of
from runbook.steps.vllm.release import Release
from runbook.steps.vllm.series import Series, SeriesConflict, load, patched
from runbook.steps.vllm.wheel import Wheel, WheelError, WheelName

RECIPE = "1"
GIB = 1 << 30
# One nvcc child of vLLM takes up to 10 GB (measured: 8 is rarely passed, never by all at once).
_GIB_PER_JOB = 8
_GIB_RESERVED = 4
_NINJA = re.compile(r"\s*\[(\d+)/(\d+)\]")
_KILLED = re.compile(
    r"fatal error: Killed|Killed signal terminated program|signal 9|\bKilled\b|std::bad_alloc"
    r"|[Oo]ut of memory|Cannot allocate memory"
)


def build_source(ctx: Context, release: Release) -> Built:
    source: dict[str, Any] = ctx.inputs.source
    series = load(ctx.inputs.target)
    store = Store(ctx.cache)
    python = release.python(ctx.inputs.python)
    version = version_of(source["version"], release.local, series)
    key = key_of(
        {
            "recipe": [RECIPE, wheels.RECIPE],
            "archive": source["archive_sha256"],
            "patches": series.digest,
            "version": version,
            "python": python,
            "build_requirements": sha256_file(release.need_build_requirements()),
            "drop_requirements": sorted(release.drop_requirements),
            "arch_list": source["arch_list"],
            "cuda": source["cuda_version"],
            # The toolkit's place is not what it is: another workspace may use the same wheel.
            "env": {
                name: value.replace(str(ctx.workspace), "<workspace>")
                for name, value in source["env"].items()
            },
        }
    )
    with store.work(key) as staging:
        found = store.built(key)
        if found is None:
            folder = ctx.workspace / f"build.{key[:8]}"
            prepare(ctx, release, series, folder, python)
            compiled = compile_wheel(ctx, folder, staging)
            path = _normalise(compiled, staging / "final", version, release)
            digest, path = store.add(path)
            store.note(key, digest, path.name)
        else:
            digest, path = found
            ctx.log(f"{path.name} was built before")
    for folder in build_folders(ctx.workspace):
        shutil.rmtree(folder)
    with Wheel(path) as wheel:
        files = touched(series, wheel)
    return Built(path, digest, version, series, files)


def build_folders(workspace: Path) -> list[Path]:
    return sorted(path for path in workspace.glob(f"build.{environment.DIGEST}") if path.is_dir())


def prepare(ctx: Context, release: Release, series: Series, folder: Path, python: str) -> None:
    """The patched source and the environment to build it in; each appears when it is whole."""
    source: dict[str, Any] = ctx.inputs.source
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "src"
    if not tree.exists():
        location = source["archive"].replace("{commit}", source["commit"])
        archive = obtain(ctx, Store(ctx.cache, "archives"), location, source["archive_sha256"])
        new = folder / "src.new"
        shutil.rmtree(new, ignore_errors=True)
        unpack(archive, source["commit"], new)
        apply_series(series, new, source["version"], archive.name)
        new.replace(tree)
    venv = folder / "venv"
    complete = venv / "complete"
    if not complete.exists():
        environment.create(ctx, venv, python)
        packages.uv(
            ctx,
            *("pip", "install", "--python", venv / "bin" / "python", "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:"),
            *("--requirement", release.need_build_requirements()),
            what="the build requirements",
        )
        complete.touch()


def apply_series(series: Series, tree: Path, version: str, name: str) -> None:
    """Write the changes of a series into an unpacked source that nothing else uses yet."""

    def read(path: str) -> bytes | None:
        file = tree / path
        return file.read_bytes() if file.is_file() else None

    try:
        changes = patched(series, read, version)
    except SeriesConflict as conflict:
        raise drifted(series, conflict, name) from conflict
    for path, data in changes.items():
        file = tree / path
        if data is None:
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def compile_wheel(ctx: Context, folder: Path, staging: Path) -> Path:
    """Build the wheel in place. Progress is ninja's."""
    source: dict[str, Any] = ctx.inputs.source
    jobs = source["jobs"] or default_jobs(available_bytes(), len(os.sched_getaffinity(0)))
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


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Memory that can be had without swapping: the kernel's estimate, or what the control group
    leaves if that is less."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    free = int(match[1]) * 1024 if match else 0
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def _normalise(compiled: Path, folder: Path, version: str, release: Release) -> Path:
    """The compiled wheel under its final name and version, with timestamps that repeat."""
    folder.mkdir()
    try:
        with Wheel(compiled) as source:
            changes: dict[str, bytes | None] = {}
            if (stated := source.read(VERSION_FILE)) is not None:
                changes[VERSION_FILE] = wheels.edit_version(stated, version)
            path = folder / str(WheelName(NAME, version, source.name.tag))
            with path.open("wb") as file:
                wheels.repack(
                    source,
                    file,
                    name=WheelName(NAME, version, source.name.tag),
                    changes=changes,
                    drop_requirements=release.drop_requirements,
                )
        return path
    except WheelError as error:
        raise StepFailure(
            f"the build gave a wheel that cannot be used: {compiled.name}",
            code="wheel_malformed",
            cause=str(error),
            remedy="runbook logs build",
        ) from error


def _explained(failure: StepFailure, lines: Sequence[str], jobs: int) -> StepFailure:
    """Name the usual cause of a failed compile, too little memory, and the first error else."""
    if any(_KILLED.search(line) for line in lines):
        fewer = max(1, jobs // 2)
        return StepFailure(
            f"the compiler ran out of memory with {jobs} processes",
            code="out_of_memory",
            cause=next(line for line in lines if _KILLED.search(line)).strip(),
            remedy=f"set source.jobs to {fewer}, then: runbook run  (compiled objects are kept)",
        )
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror\b", line, re.I)), None)
    return StepFailure(
        "vLLM did not compile",
        code="compile_failed",
        cause="\n".join(lines[first : first + 15]) if first is not None else failure.cause,
        remedy="runbook logs build --errors",
    )
