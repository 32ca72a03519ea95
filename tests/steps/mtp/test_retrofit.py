"""Runs the quantiser's tests where torch is: name an interpreter with torch, safetensors, pytest
and compressed-tensors in TORCH_PYTHON."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TORCH = os.environ.get("TORCH_PYTHON", "")


@pytest.mark.e2e
@pytest.mark.skipif(not TORCH, reason="TORCH_PYTHON names no interpreter with torch")
def test_the_quantiser():
    root = Path(__file__).parents[3]
    command = [TORCH, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", ".", "-W", "ignore"]
    command += ["--import-mode=importlib", "tests/steps/mtp/retrofit"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
