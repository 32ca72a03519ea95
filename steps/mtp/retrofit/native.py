"""Compiles and loads `kernel.cpp` when first needed; without a compiler the torch form serves.

The library is kept in the user's cache under a digest of source, flags and processor, so a home
folder shared by different machines is safe.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernel.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp")
LANES = 16
"""Rows of a vector at most; see kernel.cpp."""

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None if there is no compiler or `RUNBOOK_GPTQ_NATIVE=0`."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.environ.get("RUNBOOK_GPTQ_NATIVE") == "0":
        return None
    path = _cached(compiler)
    if path is None:
        return None
    # One OpenMP runtime for torch and the kernels, so that they share one pool of threads: the
    # library is linked without one and finds the symbols of torch's.
    ctypes.CDLL(_openmp(), mode=ctypes.RTLD_GLOBAL)
    loaded = ctypes.CDLL(str(path))
    loaded.search.argtypes = [_pointer, _long, _pointer, _pointer, _pointer, _long, _pointer]
    loaded.search.argtypes += [_long, _long, _int]
    loaded.block.argtypes = [_pointer, _long, _pointer, _long, _pointer, _long, _pointer]
    loaded.block.argtypes += [_pointer, _long, _pointer, _pointer, _long, _pointer, _long]
    loaded.block.argtypes += [_pointer, _long, _long, _int]
    for function in (loaded.search, loaded.block):
        function.restype = None
    return loaded


def _cached(compiler: str) -> Path | None:
    text = SOURCE.read_bytes()
    key = hashlib.sha256(text + repr((FLAGS, compiler, _processor())).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(os.environ.get("RUNBOOK_CACHE") or f"{base}/runbook") / "gptq"
    path = folder / f"kernel-{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unit, built = f"{scratch}/kernel.o", f"{scratch}/kernel.so"
        for command in (
            [compiler, *FLAGS, "-c", str(SOURCE), "-o", unit],
            [compiler, "-shared", unit, "-o", built],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{compiler} failed, torch is used instead: {done.stderr.strip()[-300:]}")
                return None
        Path(built).replace(path)
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _openmp() -> str:
    """The path of the OpenMP runtime that torch has loaded, else the system's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if "libgomp" in path or "libiomp" in path or "libomp" in path:
            return path
    return "libgomp.so.1"


def usable(tensor: torch.Tensor) -> bool:
    """Whether the kernels can work on a tensor [columns, rows]."""
    return tensor.device.type == "cpu" and tensor.shape[-1] % LANES == 0 and library() is not None


def search(
    w: torch.Tensor,
    weight: torch.Tensor,
    base: torch.Tensor,
    candidates: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    """See kernel.cpp; `w` [columns, rows] FP32, `scale` [rows] is written."""
    found = library()
    assert found is not None
    found.search(
        w.data_ptr(), w.stride(0), weight.data_ptr(), base.data_ptr(), candidates.data_ptr(),
        candidates.numel(), scale.data_ptr(), w.shape[0], w.shape[1], torch.get_num_threads(),
    )  # fmt: skip


def block(
    t: torch.Tensor,
    w: torch.Tensor,
    feed: torch.Tensor,
    pivot: torch.Tensor,
    scale: torch.Tensor,
    group: torch.Tensor,
    error: torch.Tensor,
    code: torch.Tensor,
    loss: torch.Tensor,
) -> None:
    """See kernel.cpp; `error`, `code` [columns, rows] and `loss` [rows] are written."""
    found = library()
    assert found is not None
    found.block(
        t.data_ptr(), t.stride(0), w.data_ptr(), w.stride(0), feed.data_ptr(), feed.stride(0),
        pivot.data_ptr(), scale.data_ptr(), scale.stride(0), group.data_ptr(), error.data_ptr(),
        error.stride(0), code.data_ptr(), code.stride(0), loss.data_ptr(), t.shape[0], t.shape[1],
        torch.get_num_threads(),
    )  # fmt: skip
