"""SIGKILL at random points of `apply`, then one run: finished, and nothing fetched without need."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runbook.process import session_members
from runbook.steps.toolkit import Toolkit
from tests.steps.toolkit.conftest import Bench, CondaBench

pytestmark = pytest.mark.harness

DRIVER = Path(__file__).with_name("drive.py")
KILLS = 20


def start(bench: Bench, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, DRIVER, bench.workspace, bench.cache, json.dumps(bench.defaults)]
    with open(log, "wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process alone; whatever it started must follow it by itself."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while session_members(process.pid):
        assert time.monotonic() < deadline, "a child outlived the killed process"
        time.sleep(0.01)


def kill_often(
    bench: Bench,
    log: Path,
    longest: float,
    cached: Callable[[], set[str]],
    fetched: Callable[[], set[str]],
) -> None:
    """Kill `KILLS` unfinished runs after up to `longest` seconds each, then let one finish.

    `cached` tells what is complete in the cache, `fetched` what the last run asked for.
    """
    rng = random.Random(20)
    struck, asked = 0, set[str]()
    while struck < KILLS:
        complete = cached()
        process = start(bench, log)
        try:
            process.wait(rng.uniform(0.1, longest))
        except subprocess.TimeoutExpired:
            kill(process)
            struck += 1
        else:
            assert process.returncode == 0, log.read_text()
            bench.undo()  # it was quicker: begin the toolkit again, with a warm cache
        again = fetched()
        assert not again & complete
        asked |= again

    complete = cached()
    process = start(bench, log)
    assert process.wait(120) == 0, log.read_text()
    again = fetched()
    assert not again & complete
    assert asked | again >= cached()  # what the cache has was indeed seen to be fetched
    assert bench.check().ok
    assert bench.check(deep=True).ok
    assert not bench.prefix.with_name("toolkit.partial").exists()


def test_conda(conda: CondaBench) -> None:
    conda.server.bytes_per_second = 3_000_000

    def fetched() -> set[str]:
        names = set(conda.server.requests)
        conda.server.requests.clear()
        return names

    def cached() -> set[str]:
        folder = conda.cache / "conda"
        return {
            package.file_name
            for package in conda.packages
            if (folder / package.file_name.removesuffix(".conda")).is_dir()
        }

    kill_often(conda, conda.root / "log", 1.3, cached, fetched)


@pytest.mark.network
def test_pypi(bench: Bench) -> None:
    bench.defaults = {"provider": "pypi", "components": "compiler"}
    log = bench.root / "log"

    def fetched() -> set[str]:
        asked = re.findall(r"^(?:Collecting|Processing) (.+?) \(from -r", log.read_text(), re.M)
        return {re.split(r"==|-\d", Path(name).name)[0].replace("_", "-") for name in asked}

    def cached() -> set[str]:
        wheels = bench.cache.glob("wheels/*/*.whl")
        return {wheel.name.split("-")[0].replace("_", "-") for wheel in wheels}

    kill_often(bench, log, 6.0, cached, fetched)
    Toolkit().undo(bench.context())
