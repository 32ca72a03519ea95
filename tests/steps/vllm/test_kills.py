"""Killed at any moment, the step goes on: one more run finishes, and does not repeat the build."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from runbook.steps.vllm import Vllm

pytestmark = pytest.mark.harness

KILLS = 20
SCRIPT = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from runbook.planning.context import StepContext
from runbook.steps.vllm import Vllm

values, workspace, cache, log = sys.argv[1:]
context = StepContext(
    "build",
    SimpleNamespace(**json.loads(values)),
    Path(workspace),
    cache=Path(cache),
    out=open(log, "w"),
)
Vllm().apply(context)
"""


def start(context, log):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(vars(context.inputs)),
         str(context.workspace), str(context.cache), str(log)],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def left_over(workspace) -> list[str]:
    """Command lines of processes that still work on this workspace."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                line = file.read().decode(errors="replace")
        except (OSError, ValueError):
            continue
        if str(workspace) in line:
            found.append(line)
    return found


def test_kills_at_random_points(world):
    step = Vllm()
    world.chill()
    measure = world.context("measure")
    began = time.monotonic()
    process = start(measure, world.root / "log")
    assert process.wait(120) == 0, process.stderr.read()
    length = time.monotonic() - began
    subprocess.check_call(["rm", "-rf", str(world.cache), os.environ["UV_CACHE_DIR"]])

    context = world.context()
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    finished = 0
    for _ in range(KILLS):
        process = start(context, world.root / "log")
        try:
            process.wait(chance.uniform(0, length))
            finished += process.returncode == 0
            assert process.returncode == 0, (seed, process.stderr.read())
        except subprocess.TimeoutExpired:
            # Only the attempt itself: what it started must end by itself.
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            deadline = time.monotonic() + 5
            while (left := left_over(context.workspace)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not left, (seed, left)
        if step.check(context).ok:
            # Whatever a check accepts must be whole.
            context.deep = True
            assert step.check(context).ok, seed
            context.deep = False
            step.undo(context)

    world.wheel.unlink() if (world.cache / "built").exists() else None
    process = start(context, world.root / "log")
    assert process.wait(120) == 0, (seed, process.stderr.read())
    context.deep = True
    check = step.check(context)
    assert check.ok, (seed, check.reasons)
    kept = {path.name for path in context.workspace.iterdir()}
    environment = (context.workspace / "venv").readlink().name
    assert kept == {"venv", environment, "dist"}, seed
    assert not list((world.cache / "staging").iterdir()), seed
