"""Runs the quantiser's tests where torch is: in the environment of a patched vLLM, with a pytest
beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest


@pytest.mark.e2e
def test_the_quantiser(torch_python, tmp_path):
    root = Path(__file__).parents[3]
    beside = tmp_path / "pytest"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(beside)]
    needed = [f"{module.__name__}=={module.__version__}" for module in (pytest, hypothesis)]
    subprocess.run([*install, *needed], check=True)
    command = [torch_python, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", "."]
    command += ["-W", "ignore", "-rs", "--import-mode=importlib", "tests/steps/mtp/retrofit"]
    environment = {**os.environ, "PYTHONPATH": str(beside)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    # Without a C++ compiler some are left out; no library may be missing.
    assert " passed" in done.stdout and "could not import" not in done.stdout, done.stdout
