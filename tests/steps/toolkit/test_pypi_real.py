"""NVIDIA's wheels for real: a CUDA compiler on a machine that may have no GPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbook.protocol import PreconditionNotMet
from runbook.steps.toolkit import Toolkit
from tests.steps.toolkit.conftest import Bench

pytestmark = pytest.mark.network

LINKED = """\
#include <cstdio>
#include <cuda.h>
#include <cub/block/block_reduce.cuh>
__global__ void kernel(float *x) { x[threadIdx.x] *= 2; }
int main() {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  CUresult answer = cuDriverGetVersion(&driver);
  std::printf("%d %d\\n", runtime, int(answer));
}
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(
        tmp_path_factory.mktemp("toolkit"), {"provider": "pypi", "components": "compiler"}
    )
    bench.apply()
    yield bench


@pytest.fixture
def decoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another nvcc, first on PATH, that must never be asked."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho decoy >&2; exit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "--no-such-option")


def test_the_toolkit_holds_and_compiles(real: Bench, decoy: None) -> None:
    check = real.check(deep=True)
    assert check.ok, check.reasons
    assert check.outputs["nvcc_version"] == "13.0.88"
    assert "compiled a kernel to a sm_120 cubin" in real.log.getvalue()


@pytest.mark.parametrize("architecture", ["12.0a", "12.1", "9.0"])
def test_another_architecture_needs_only_another_proof(real: Bench, architecture: str) -> None:
    check = real.check(architecture=architecture)
    assert [reason.code for reason in check.reasons] == ["architecture_changed"]
    assert check.work.bytes == 0
    real.log.truncate(0)
    real.apply(architecture=architecture)
    assert real.check(architecture=architecture).ok
    assert " pip " not in real.log.getvalue()
    real.apply()


def test_a_newer_compiler_may_be_asked_for_later(real: Bench) -> None:
    assert real.check(gcc_minimum=9).ok
    check = real.check(gcc_minimum=15 + 1)
    assert [reason.code for reason in check.reasons] == ["host_compiler_too_old"]
    with pytest.raises(PreconditionNotMet) as failure:
        real.apply(gcc_minimum=15 + 1)
    assert failure.value.code == "host_compiler_missing"
    real.apply()


def test_a_program_links_with_the_outputs_as_environment(real: Bench, tmp_path: Path) -> None:
    outputs = real.check().outputs
    path = ":".join([*outputs["path"], os.environ["PATH"]])  # type: ignore[misc, list-item]
    env = {**os.environ, **outputs["env"], "PATH": path}  # type: ignore[dict-item]
    source = tmp_path / "linked.cu"
    source.write_text(LINKED)
    subprocess.run(
        ["nvcc", "-arch=sm_120", "-o", tmp_path / "linked", source, "-lcuda"], env=env, check=True
    )
    needed = subprocess.run(
        ["readelf", "-d", tmp_path / "linked"], capture_output=True, text=True, check=True
    ).stdout
    assert "[libcuda.so.1]" in needed


@pytest.mark.parametrize("name", ["bin/nvcc", "nvvm/bin/cicc", "nvvm/libdevice/libdevice.10.bc"])
def test_a_damaged_tool_is_noticed_at_once_and_repaired(real: Bench, name: str) -> None:
    file = Path(str(real.check().outputs["cuda_home"])) / name
    file.write_bytes(file.read_bytes()[:-1])
    check = real.check()
    assert [reason.code for reason in check.reasons] == ["toolkit_damaged"]
    assert name in check.reasons[0].message
    real.log.truncate(0)
    real.apply()
    assert real.check(deep=True).ok
    assert "pip download" not in real.log.getvalue()


def test_a_kernel_that_does_not_compile_names_the_compiler(
    real: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = Path(str(real.check().outputs["cuda_home"])) / "include/cuda_fp16.h"
    text = header.read_bytes()
    header.write_bytes(b"#error broken on purpose\n" + text)
    try:
        assert real.check().ok
        assert [reason.code for reason in real.check(deep=True).reasons] == ["toolkit_damaged"]
    finally:
        real.apply()
    assert header.read_bytes() == text


def test_undo_leaves_nothing_in_the_workspace(real: Bench, tmp_path: Path) -> None:
    own = Bench(tmp_path, real.defaults)
    own.cache.symlink_to(real.cache)
    own.apply()
    Toolkit().undo(own.context())
    assert not list(own.workspace.iterdir())
    assert "pip download" not in own.log.getvalue()
