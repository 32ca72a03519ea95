"""A run that has nothing to do, and `status`, against doit on as many tasks.

    python tests/benchmarks/engine.py [--rounds 15] [--tasks 7 5000] [--book rehearsal]

Prints JSON lines: medians in seconds, of rounds in which the programs take turns, and their ratio.
`cpu`: the same of the processors' time, which a machine that is busy otherwise tells better.
With --book also the no-op run of that book, which must have been run before in its workspace.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DODO = """
def task_make():
    for n in range({tasks}):
        yield {{
            "name": f"t{{n}}",
            "actions": [f"touch made{{n}}"],
            "targets": [f"made{{n}}"],
            "uptodate": [True],
        }}
"""


def timed(argv: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds on the clock, and of the processors."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return end - begin, used


def compare(tasks: int, rounds: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RUNBOOK_WORKSPACE": str(folder / "workspace"),
    }
    program = Path(sys.executable).parent
    (folder / "dodo.py").write_text(DODO.format(tasks=tasks))
    steps = "".join(
        f"  - {{id: t{n}, uses: command, with: {{run: 'touch made{n}', creates: made{n}}}}}\n"
        for n in range(tasks)
    )
    (folder / "runbook.yaml").write_text(f"runbook: 1\nname: benchmark\nsteps:\n{steps}")
    workspace = folder / "workspace"
    workspace.mkdir()
    for n in range(tasks):  # found done, so that 5,000 processes need not be started
        (workspace / f"made{n}").touch()
        (folder / f"made{n}").touch()
    commands = {
        "doit": [str(program / "doit"), "run"],
        "run": [str(program / "runbook"), "run"],
        "plan": [str(program / "runbook"), "plan"],
        "status": [str(program / "runbook"), "status"],
        "python": [sys.executable, "-c", "pass"],
    }
    for argv in commands.values():
        timed(argv, folder, environment)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, argv in commands.items():
            times[name].append(timed(argv, folder, environment))
    shutil.rmtree(folder)
    line = {"benchmark": "no-op", "tasks": tasks, "rounds": rounds}
    for which, mark in enumerate(("", "cpu_")):
        medians = {
            name: statistics.median(pair[which] for pair in pairs) for name, pairs in times.items()
        }
        line |= {f"{name}_{mark}seconds": round(value, 4) for name, value in medians.items()}
        for name in ("run", "plan", "status"):
            line[f"{name}_to_doit{mark and '_cpu'}"] = round(medians[name] / medians["doit"], 3)
    print(json.dumps(line), flush=True)


def book(name: str, rounds: int) -> None:
    program = Path(sys.executable).parent / "runbook"
    for verb in ("run", "status"):
        values = [
            timed([str(program), verb, name], Path.cwd(), dict(os.environ))[0]
            for _ in range(rounds)
        ]
        median = round(statistics.median(values), 4)
        print(json.dumps({"benchmark": verb, "book": name, "rounds": rounds, "seconds": median}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, nargs="*", default=[7, 5000])
    parser.add_argument("--book")
    options = parser.parse_args()
    for tasks in options.tasks:
        compare(tasks, options.rounds)
    if options.book:
        book(options.book, options.rounds)


if __name__ == "__main__":
    main()
