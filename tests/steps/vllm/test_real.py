"""The shipped series against the releases they are for, downloaded from the package index."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runbook.context import StepContext, default_cache
from runbook.steps.vllm import Vllm
from runbook.steps.vllm.build import base_wheel
from runbook.steps.vllm.release import load_release, lock_path
from runbook.steps.vllm.series import examine, load, patched, unpatched
from runbook.steps.vllm.store import Store
from runbook.steps.vllm.target import targets
from runbook.steps.vllm.wheel import Wheel, faults

WHEEL_TARGETS = [target for target in targets() if lock_path(target, None).exists()]


def context(workspace: Path, target: str) -> StepContext:
    values = Vllm.Inputs(mode="wheel", target=target).model_dump()
    return StepContext(
        "build", SimpleNamespace(**values), workspace, cache=default_cache(), out=sys.stderr
    )


@pytest.fixture(params=WHEEL_TARGETS)
def release(request, tmp_path):
    target = request.param
    locked = load_release(lock_path(target, None))
    path = base_wheel(context(tmp_path, target), Store(default_cache()), locked)
    with Wheel(path) as wheel:
        yield SimpleNamespace(series=load(target), version=locked.version, wheel=wheel)


@pytest.mark.network
def test_series_fits_compiles_and_comes_off(release):
    series, version, wheel = release.series, release.version, release.wheel
    found = examine(series, wheel.read, version)
    assert [f.state for f in found.findings] == ["absent"] * len(series.patches)
    changes = patched(series, wheel.read, version)
    for path, data in changes.items():
        if path.endswith(".py") and data is not None:
            compile(data, path, "exec")

    def read(path):
        return changes[path] if path in changes else wheel.read(path)

    again = examine(series, read, version)
    assert [f.state for f in again.findings] == ["applied"] * len(series.patches)
    assert again.patched == {}
    back = unpatched(series, read, version)
    assert set(back) == set(changes)
    assert all(back[path] == wheel.read(path) for path in back)


@pytest.mark.network
def test_each_patch_is_told_alone(release):
    """With only the first patches of the series in place, exactly those are `applied`."""
    series, version, wheel = release.series, release.version, release.wheel
    for count in range(1, len(series.patches)):
        first = type(series)(series.target, series.patches[:count], "")
        changes = patched(first, wheel.read, version)

        def read(path, changes=changes):
            return changes[path] if path in changes else wheel.read(path)

        states = [f.state for f in examine(series, read, version).findings]
        assert states == ["applied"] * count + ["absent"] * (len(states) - count)


@pytest.mark.network
def test_one_changed_line_is_refused(release):
    """Whichever touched file drifts, the series is refused and the file named."""
    series, version, wheel = release.series, release.version, release.wheel
    for patch in series.patches:
        for file in patch.files:
            source = wheel.read(file.old)
            if source is None or not file.hunks:
                continue
            line = next(line for line in file.hunks[0].old if line.strip())
            drifted = source.replace(line, b"# drifted\n")

            def read(path, name=file.old, drifted=drifted):
                return drifted if path == name else wheel.read(path)

            conflicts = examine(series, read, version).conflicts
            assert file.old in {conflict.file for conflict in conflicts}, patch.id


@pytest.mark.e2e
def test_the_cpu_release_is_built_installed_and_answers(tmp_path):
    if os.uname().machine != "x86_64":
        pytest.skip("the CPU release is locked for x86_64")
    step = Vllm()
    ctx = context(tmp_path, "0.32.0-cpu")
    ctx.out = io.StringIO()
    step.apply(ctx)
    ctx.deep = True
    check = step.check(ctx)
    assert check.ok, check.reasons
    with Wheel(Path(check.outputs["wheel"])) as wheel:
        assert list(faults(wheel.record(), wheel.open)) == []
    code = (
        "import vllm.platforms as p, vllm.models.deepseek_v4.cpu.mtp as m;"
        "print(p.current_platform.is_cpu(), m.__name__)"
    )
    answer = subprocess.check_output([check.outputs["python"], "-c", code], text=True)
    assert answer.split()[-2:] == ["True", "vllm.models.deepseek_v4.cpu.mtp"]
