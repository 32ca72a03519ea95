"""Random schedules of faults and crashes: the result is the source, and nothing is wasted."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbook.protocol import StepFailure
from runbook.steps.common.hub import acquire
from runbook.steps.weights import Weights
from tests.steps.common.hub.crash import Crash, crashing
from tests.steps.common.hub.hub import PIECE, TUNING, Fault, TestHub, context, tree

pytestmark = pytest.mark.harness

WORKERS = 3
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where fsync costs nothing: there are thousands of them here."""
CONTENT = st.sampled_from(
    ["cut", "cut", "reset", "flip", "slow", "changed", "length", "loop", "403", "429", "500", "503"]
)
FAULTS = st.one_of(
    st.builds(Fault, CONTENT, st.just("content"), st.floats(0, 1, exclude_max=True)),
    st.builds(Fault, st.sampled_from(["429", "502", "loop"]), st.just("resolve")),
    st.builds(Fault, st.sampled_from(["429", "503"]), st.just("api")),
)
RUNS = st.lists(
    st.tuples(st.lists(FAULTS, max_size=5), st.one_of(st.none(), st.integers(0, 120))),
    min_size=1,
    max_size=4,
)
"""Each run: what the server does wrong, and the step on the disk at which the process dies."""


def explained(happened: Counter[str], crashes: int, sizes: dict[str, int]) -> int:
    """Bytes beyond one copy that these events may cost, sizes scaled as TUNING scales them.

    A crash: per worker what was not yet marked (64 KiB here, 64 MiB in earnest: a segment is
    the most that can be under way) and what was in flight. A reset: what the kernel threw away
    of one range. A flipped byte: the file a second time. A changed file: the file again, and
    so for a file that a crash leaves without a record.
    """
    largest = max(sizes.values())
    return (
        crashes * WORKERS * (TUNING.segment + PIECE)
        + (happened["reset"] + happened["length"] + happened["loop"]) * TUNING.segment
        + (happened["flip"] + happened["changed"]) * 2 * largest
    )


@pytest.fixture(scope="module")
def hub(repository):
    with TestHub(repository) as started:
        yield started


@settings(
    max_examples=220,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(runs=RUNS)
def test_any_schedule_ends_with_the_source(hub, source, repository, monkeypatch, runs):
    monkeypatch.setattr(acquire, "DEFAULT_TUNING", TUNING)
    with tempfile.TemporaryDirectory(prefix="schedule", dir=MEMORY) as workspace:
        follow(runs, hub, Path(workspace), source, repository, monkeypatch)


def follow(runs, hub, workspace, source, repository, monkeypatch) -> None:
    faults, crashes = hub.faults, 0
    faults.happened.clear()
    faults.sent = 0
    # The last run meets no crash and what is left of the faults.
    for pending, crash_at in [*runs, ([], None)]:
        faults.pending.extend(pending)
        ctx = context(workspace, hub, workers=WORKERS, patience=10.0)
        with crashing(monkeypatch, crash_at) as crasher:
            try:
                Weights().apply(ctx)
            except Crash:
                pass
            except StepFailure as failure:
                # Faults may come in a row that looks like a liar's; the next run goes on.
                assert failure.retryable, failure.message
            crashes += crasher.crashed
    faults.pending.clear()
    Weights().apply(ctx)
    assert Weights().check(ctx).ok
    assert tree(workspace / "weights" / "tiny") == tree(source)
    sizes = {f.path: f.size for f in repository.files}
    assert faults.sent - sum(sizes.values()) <= explained(faults.happened, crashes, sizes)
