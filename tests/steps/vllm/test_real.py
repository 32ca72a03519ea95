"""The shipped series against the releases they are for, downloaded from the package index."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from runbook.planning.context import StepContext, default_cache
from runbook.steps.common.packages.indexes import pip_settings, uv_environment
from runbook.steps.common.packages.record import faults
from runbook.steps.common.packages.uv_command import uv
from runbook.steps.common.packages.wheel import Wheel
from runbook.steps.common.store import Store
from runbook.steps.common.vllm_release import load_release, lock_path
from runbook.steps.vllm import Vllm
from runbook.steps.vllm.archive import obtain, unpack
from runbook.steps.vllm.patching.examine import examine, patched, unpatched
from runbook.steps.vllm.patching.series import Series, load
from runbook.steps.vllm.published import base_wheel
from runbook.steps.vllm.source import apply_series
from runbook.steps.vllm.target import targets

BEHAVIOUR = Path(__file__).with_name("behaviour.py")
FUSED = {
    "gate_up_proj": ["w1", "w3"],
    "fused_wqa_wkv": ["wq_a", "wkv"],
    "fused_wkv_wgate": ["wkv", "wgate"],
}
PLAIN = {"weight": [2048, 1024]}
SCALED = {"weight": [2048, 1024], "weight_scale": [16, 8]}
OWN_GROUPS = {"w2_scale": [2, 2, 512], "full": False, "is_k_full": True}
ALL_GROUPS = {"w2_scale": [2, 16, 512], "full": True, "is_k_full": False}
# What the classes of a release do without and with its series.
DIFFERENCES = {
    "0.33.0": {
        "packed_modules": (FUSED, FUSED),
        "compressor": (PLAIN, SCALED),
        "plain_compressor": (PLAIN, PLAIN),
        "native_compressor": (PLAIN, PLAIN),
    },
    "0.33.0-nvfp4": {
        "expert_formats": (
            {"1": 16, "4": 16, "2": 16, "3": 16, "6": 16, "cast": 16, "native": 32},
            {"1": 16, "4": 32, "2": 32, "3": 32, "6": 32, "cast": 16, "native": 32},
        ),
        "draft_experts_load": (
            "mtp.0.ffn.experts.0.w1.scale is not where it belongs",
            "72 tensors in 12 parameters",
        ),
    },
    "0.22.1": {
        "packed_modules": (None, FUSED),
        "compressor": (PLAIN, SCALED),
        "plain_compressor": (PLAIN, PLAIN),
        "native_compressor": (PLAIN, PLAIN),
        "swiglu_limit": (None, 10.0),
        "activation_order": (
            {"None": OWN_GROUPS, "static": ALL_GROUPS, "group": ALL_GROUPS},
            {"None": OWN_GROUPS, "static": OWN_GROUPS, "group": ALL_GROUPS},
        ),
    },
}


def context(workspace: Path, series: str) -> StepContext:
    target = load(series).releases[0]
    values = Vllm.Inputs(mode="wheel", target=target, series=series).model_dump()
    return StepContext(
        "build", SimpleNamespace(**values), workspace, cache=default_cache(), out=sys.stderr
    )


def of_the_package(series: Series) -> Series:
    """The patches of Python sources, which is what a wheel has."""
    kept = (p for p in series.patches if all(f.new.startswith("vllm/") for f in p.files))
    return replace(series, patches=tuple(kept))


@contextmanager
def release_of(target: str, workspace: Path):
    locked = load_release(lock_path(load(target).releases[0], None))
    path = base_wheel(context(workspace, target), Store(default_cache()), locked)
    with Wheel(path) as wheel:
        yield SimpleNamespace(
            series=of_the_package(load(target)), version=locked.version, wheel=wheel
        )


@pytest.fixture(params=targets())
def release(request, tmp_path):
    with release_of(request.param, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def cpu_environment(tmp_path_factory):
    """The outputs of the step for the CPU release, built once."""
    if os.uname().machine != "x86_64":
        pytest.skip("the CPU release is locked for x86_64")
    ctx = context(tmp_path_factory.mktemp("workspace"), "0.32.0-cpu")
    Vllm().apply(ctx)
    ctx.deep = True
    check = Vllm().check(ctx)
    assert check.ok, check.reasons
    return check.outputs


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
        first = replace(series, patches=series.patches[:count])
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
            # Not a line that an earlier patch of the series brings.
            line = next(line for line in file.hunks[0].old if line.strip() and line in source)
            drifted = source.replace(line, b"# drifted\n")

            def read(path, name=file.old, drifted=drifted):
                return drifted if path == name else wheel.read(path)

            conflicts = examine(series, read, version).conflicts
            assert file.old in {conflict.file for conflict in conflicts}, patch.id


@pytest.mark.network
def test_the_source_series_fits_the_source_distribution(tmp_path):
    """0.22.1 is for `mode: source`: its last patches are of CMake and CUDA files."""
    series = load("0.22.1")
    archive = source_distribution("vllm", "0.22.1", tmp_path)
    unpack(archive, "0" * 40, tmp_path / "src")

    def read(path):
        file = tmp_path / "src" / path
        return file.read_bytes() if file.is_file() else None

    before = {file.old: read(file.old) for patch in series.patches for file in patch.files}
    apply_series(series, tmp_path / "src", "0.22.1", archive.name)
    states = [f.state for f in examine(series, read, "0.22.1").findings]
    assert states == ["applied"] * len(series.patches)
    assert unpatched(series, read, "0.22.1") == before


def source_distribution(name: str, version: str, folder: Path) -> Path:
    """Downloaded from the index that pip is configured with; pip itself would also build it."""
    import requests
    from pip._internal.models.index import PyPI

    index = pip_settings().get("index-url") or PyPI.simple_url
    answer = requests.get(
        f"{index}/{name}/",
        headers={"Accept": "application/vnd.pypi.simple.v1+json"},
        timeout=60,
    )
    answer.raise_for_status()
    files = answer.json()["files"]
    (file,) = (f for f in files if f["filename"] == f"{name}-{version}.tar.gz")
    address = urllib.parse.urljoin(str(answer.url), file["url"])
    values = context(folder, "0.22.1")
    return obtain(values, Store(default_cache(), "archives"), address, file["hashes"]["sha256"])


TORCH_NEEDS = (
    "filelock",
    "typing-extensions",
    "setuptools",
    "sympy",
    "networkx",
    "jinja2",
    "fsspec",
)


@pytest.fixture(scope="module")
def torch_index(tmp_path_factory):
    """An index with the files of PyTorch's own, by name, hash and metadata; none can be had."""
    folder = tmp_path_factory.mktemp("torch")
    own = load_release(lock_path("0.32.0-cpu", None)).own_index
    needs = "".join(f"Requires-Dist: {name}\n" for name in TORCH_NEEDS)
    metadata = f"Metadata-Version: 2.4\nName: torch\nVersion: 2.13.0+cpu\n{needs}\n"
    digest = hashlib.sha256(metadata.encode()).hexdigest()
    links = ""
    (folder / "torch").mkdir()
    for file, sha256 in own.wheels.items():
        (folder / "torch" / f"{file}.metadata").write_text(metadata)
        link = f"{urllib.parse.quote(file)}#sha256={sha256}"
        links += f'<a href="{link}" data-core-metadata="sha256={digest}">{file}</a>\n'
    (folder / "torch/index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.network
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_cpu_lock_is_complete_for_each_python(tmp_path, torch_index, python, machine):
    """Every package, what it needs included, has a wheel with a locked hash."""
    settings = pip_settings()
    variables = {**os.environ, **uv_environment(settings, os.environ)}
    variables["UV_INDEX"] = f"{torch_index} {variables.get('UV_INDEX', '')}".strip()
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--require-hashes"),
            *("--only-binary", ":all:", "--target", tmp_path, "--python-version", python),
            *("--python-platform", f"{machine}-manylinux_2_36", "--requirement"),
            load_release(lock_path("0.32.0-cpu", None)).requirements,
        ],
        env=variables,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert "+ torch==2.13.0+cpu" in answer.stderr


@pytest.mark.e2e
def test_the_cpu_release_is_built_installed_and_answers(cpu_environment):
    with Wheel(Path(cpu_environment["wheel"])) as wheel:
        assert list(faults(wheel.record(), wheel.open)) == []
    code = (
        "import vllm.platforms as p, vllm.models.deepseek_v4.cpu.mtp as m;"
        "from vllm.models.deepseek_v4.cpu.dspark import DSparkDeepseekV4ForCausalLM as d;"
        "print(p.current_platform.is_cpu(), hasattr(d, 'load_weights'), m.__name__)"
    )
    answer = subprocess.check_output([cpu_environment["python"], "-c", code], text=True)
    assert answer.split()[-3:] == ["True", "True", "vllm.models.deepseek_v4.cpu.mtp"]


@pytest.mark.e2e
@pytest.mark.parametrize("target", DIFFERENCES)
def test_what_the_patches_change(target, cpu_environment, tmp_path):
    """vLLM's own classes, before and after, on this CPU."""
    extra = tmp_path / "extra"
    # A module that 0.22.1 imports and the environment of the CPU release does not have.
    uv(context(tmp_path, target), "pip", "install", "--target", extra, "gguf", what="gguf")
    facts = DIFFERENCES[target]
    with release_of(target, tmp_path) as release:
        changes = patched(release.series, release.wheel.read, release.version)
        for index, changed in enumerate(({}, changes)):
            tree = tmp_path / str(index)
            for path in {*release.wheel.members, *changed}:
                data = changed.get(path) or release.wheel.read(path)
                if path.startswith("vllm/") and not path.endswith((".so", "/")):
                    (tree / path).parent.mkdir(parents=True, exist_ok=True)
                    (tree / path).write_bytes(data)
            answer = subprocess.check_output(
                [cpu_environment["python"], BEHAVIOUR, *facts],
                env={**os.environ, "PYTHONPATH": f"{tree}:{extra}"},
                cwd=tmp_path,
                text=True,
            )
            expected = {name: values[index] for name, values in facts.items()}
            assert json.loads(answer.splitlines()[-1]) == expected
