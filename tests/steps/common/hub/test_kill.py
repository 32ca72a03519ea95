"""Real processes, real SIGKILL and SIGTERM."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runbook.steps.common.hub.listing import Digest, Entry
from runbook.steps.common.hub.part import Part
from runbook.steps.common.hub.parts import paths
from runbook.steps.publish.repository import Repository
from runbook.steps.weights import Weights
from tests.steps.common.hub.hub import PIECE, TUNING, TestHub, context, tree, write_repository

pytestmark = pytest.mark.harness

WORKERS = 3
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    write_repository(folder, sizes=(1_000_000, 1_500_000, 700_000, 400_000))
    return Repository.of(folder, "org/tiny")


def start(workspace: Path, hub: TestHub) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.steps.common.hub.child", str(workspace), hub.url],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_sent(hub: TestHub, count: int, process: subprocess.Popen) -> None:
    while hub.faults.sent < count and process.poll() is None:
        time.sleep(0.001)


def test_killed_again_and_again(large, tmp_path):
    """Killed at random points of the transfer; each time it goes on from what was marked."""
    total = sum(f.size for f in large.files)
    points = sorted(random.Random(7).sample(range(total), 8))
    with TestHub(large) as hub:
        hub.faults.pause = 0.003
        kills = 0
        for point in points:
            process = start(tmp_path, hub)
            wait_until_sent(hub, point + kills * WORKERS * PIECE, process)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.communicate()
        hub.faults.pause = 0
        process = start(tmp_path, hub)
        assert process.wait(60) == 0, process.stderr.read()
        process.stderr.close()
        assert kills >= 4
        # 64 MiB per kill and worker, here 64 KiB, and what was in flight.
        assert hub.faults.sent - total <= kills * WORKERS * (TUNING.segment + 2 * PIECE)
        assert tree(tmp_path / "weights" / "tiny") == tree(large.folder)
        ctx = context(tmp_path, hub, link="none")
        assert Weights().check(ctx).ok
        ctx.deep = True
        assert Weights().check(ctx).ok


def test_resume_reads_only_what_was_not_hashed(large, tmp_path):
    """The running digest is in the sidecar: what it covers is not read again."""
    name = "model-00002-of-00004.safetensors"
    with TestHub(large) as hub:
        hub.faults.pause = 0.005
        process = start(tmp_path, hub)
        folder = tmp_path / "weights" / "tiny"
        part, sidecar = paths(folder, name)
        while not sidecar.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        file = large.find(name)
        entry = Entry(name, file.size, Digest("sha256", file.sha256))
        resumed = Part(folder, entry, hashed=True)
        assert resumed._hasher.position > 0
        source = (large.folder / name).read_bytes()
        # Spoil what was hashed: the digest must not notice, for it must not read it.
        with part.open("r+b") as spoiled:
            spoiled.write(bytes(1000))
        for start_at, stop in resumed.spans.gaps(entry.size):
            resumed.write(start_at, source[start_at:stop])
        assert resumed.digest() == file.sha256
        resumed.close()


def test_second_run_finds_the_lock(large, tmp_path):
    from runbook.protocol import StepFailure

    with TestHub(large) as hub:
        hub.faults.pause = 0.02
        process = start(tmp_path, hub)
        wait_until_sent(hub, 1, process)
        with pytest.raises(StepFailure) as failure:
            Weights().apply(context(tmp_path, hub))
        assert failure.value.code == "destination_busy"
        assert failure.value.retryable
        process.kill()
        process.communicate()
