"""What the CUDA wheels lack to be a CUDA_HOME for nvcc, CMake's FindCUDAToolkit and torch."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from runbook.protocol import Context, StepFailure

LIBRARY = re.compile(r"(?P<link>lib.+?\.so)\.[\d.]+")
# Libraries of the driver: programs link against these names on machines that have no driver.
STUBS = {"libcuda.so": "libcuda.so.1", "libnvidia-ml.so": "libnvidia-ml.so.1"}


def find_home(prefix: Path) -> Path:
    """The one `nvidia/cu<major>` folder with an nvcc."""
    homes = [nvcc.parent.parent for nvcc in prefix.glob("nvidia/cu*/bin/nvcc")]
    if len(homes) != 1:
        raise StepFailure(
            f"the wheels of the lock gave {len(homes)} folders with an nvcc, not one",
            code="no_nvcc" if not homes else "several_toolkits",
            cause=", ".join(map(str, homes)) or f"no {prefix}/nvidia/cu*/bin/nvcc",
            remedy="use a lock with the nvidia-cuda-nvcc of one CUDA major, 13 or newer",
        )
    return homes[0]


def finish(ctx: Context, home: Path, cc: str) -> None:
    """Add the names that a toolkit installer would have made. Idempotent.

    nvcc.profile and FindCUDAToolkit look in `lib64` and `targets/x86_64-linux`; linkers want
    `libX.so` where the wheels have only `libX.so.N`; CMake's CUDA::cuda_driver wants a libcuda
    to link against, which comes with a driver or, as an empty stub, with a full toolkit.
    """
    lib = home / "lib"
    _link(home / "lib64", "lib")
    (home / "targets").mkdir(exist_ok=True)
    _link(home / "targets" / "x86_64-linux", "..")
    for library in sorted(lib.glob("lib*.so.*")):
        if match := LIBRARY.fullmatch(library.name):
            _link(lib / match["link"], library.name)
    (lib / "stubs").mkdir(exist_ok=True)
    for name, soname in STUBS.items():
        if not (lib / "stubs" / name).exists():
            _make_stub(ctx, lib / "stubs" / name, soname, cc)


def _link(path: Path, target: str) -> None:
    if path.is_symlink():
        if os.readlink(path) == target:
            return
        path.unlink()
    elif path.exists():
        return  # shipped by a wheel
    path.symlink_to(target)


def _make_stub(ctx: Context, path: Path, soname: str, cc: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".stub-") as folder:
        source = Path(folder) / "empty.c"
        source.write_text("/* a name to link against */\n")
        made = Path(folder) / path.name
        ctx.run([cc, "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", made, source])
        made.replace(path)
