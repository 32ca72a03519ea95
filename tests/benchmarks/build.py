"""How long the patched vLLM takes, beside the published wheel installed the same way.

Both start from downloaded packages (a first round fills the caches) and end byte-compiled. Prints
JSON lines; the last has the ratio, of which at most 1.3 is wanted. Run by hand:
`python tests/benchmarks/build.py [ROUNDS]`.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from runbook.planning.context import StepContext, default_cache
from runbook.steps.common.packages import uv_command
from runbook.steps.common.store import Store
from runbook.steps.common.vllm_release import Release, load_release, lock_path
from runbook.steps.vllm import Vllm, build, environment
from runbook.steps.vllm.install import compile_sources, install
from runbook.steps.vllm.published import base_wheel

TARGET = "0.32.0-cpu"


def context(folder: Path) -> StepContext:
    values = Vllm.Inputs(mode="wheel", target=TARGET, series=TARGET).model_dump()
    folder.mkdir(parents=True)
    return StepContext("build", SimpleNamespace(**values), folder, cache=default_cache())


def patched(ctx: StepContext, release: Release) -> None:
    shutil.rmtree(ctx.cache / "built", ignore_errors=True)
    install(ctx, release, build(ctx, release), None)


def unpatched(ctx: StepContext, release: Release) -> None:
    wheel = base_wheel(ctx, Store(ctx.cache), release)
    folder = ctx.workspace / "venv"
    environment.create(ctx, folder, release.python(None))
    wanted = folder / "requirements.txt"
    line = uv_command.file_requirement(release.distribution, wheel, release.wheel().sha256)
    wanted.write_text(f"-r {release.requirements}\n{line}\n")
    uv_command.uv(
        ctx,
        *("pip", "install", "--python", folder / "bin" / "python", "--no-deps"),
        *("--require-hashes", "--only-binary", ":all:", "--requirement", wanted),
        what=wheel.name,
    )
    compile_sources(ctx, folder)


def timed(work: Callable[[StepContext, Release], None], release: Release) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        ctx = context(Path(folder) / "workspace")
        began, spent = time.monotonic(), cpu_seconds()
        work(ctx, release)
        return {
            "wall_seconds": round(time.monotonic() - began, 2),
            "cpu_seconds": round(cpu_seconds() - spent, 2),
        }


def cpu_seconds() -> float:
    """Of this process and all its ended children."""
    usage = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in usage)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    release = load_release(lock_path(TARGET, None))
    seen: dict[str, list[dict[str, float]]] = {"unpatched": [], "patched": []}
    for round_ in range(rounds + 1):
        for name, work in (("unpatched", unpatched), ("patched", patched)):
            times = timed(work, release)
            print(json.dumps({"what": name, "warm": round_ > 0, **times}), flush=True)
            if round_ > 0:
                seen[name].append(times)
    ratios = {
        f"{kind}_ratio": round(
            statistics.median(t[f"{kind}_seconds"] for t in seen["patched"])
            / statistics.median(t[f"{kind}_seconds"] for t in seen["unpatched"]),
            3,
        )
        for kind in ("wall", "cpu")
    }
    print(json.dumps({"what": "patched / unpatched", "rounds": rounds, **ratios}))


if __name__ == "__main__":
    main()
