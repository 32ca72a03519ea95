"""A package index in a folder: small wheels in the layout of NVIDIA's."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

from runbook.steps.common.store import sha256_file

# What is in it does not matter to unpacking and repairing; only real wheels compile
# (test_pypi_real.py).
CONTENTS: dict[str, dict[str, bytes]] = {
    "nvidia-cuda-nvcc": {
        "nvidia/cu13/bin/nvcc": b"#!/bin/sh\n",
        "nvidia/cu13/bin/ptxas": os.urandom(200_000),
    },
    "nvidia-cuda-crt": {"nvidia/cu13/include/crt/host_config.h": b"#if __GNUC__ > 15\n#endif\n"},
    "nvidia-cuda-runtime": {
        "nvidia/cu13/include/cuda.h": b"#define cuMemAlloc cuMemAlloc_v2\n"
        b"typedef int CUresult;\nCUresult cuInit(unsigned);\nCUresult  cuMemAlloc (void);\n",
        "nvidia/cu13/lib/libcudart.so.13": os.urandom(400_000),
        "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0": b"",
    },
}


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return wheel


def pin(wheel: Path) -> str:
    name, version, *_ = wheel.name.split("-")
    size = wheel.stat().st_size
    return (
        f"{name.replace('_', '-')}=={version} \\\n"
        f"    --hash=sha256:{sha256_file(wheel)}  # {size} bytes\n"
    )
