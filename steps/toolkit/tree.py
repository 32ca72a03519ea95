"""What the CUDA wheels lack to be a CUDA_HOME for nvcc, CMake's FindCUDAToolkit and torch."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runbook.protocol import Context, StepFailure

LIBRARY = re.compile(r"(?P<link>lib.+?\.so)\.[\d.]+")
NOT_THE_DRIVER = 34  # CUDA_ERROR_STUB_LIBRARY in cuda.h; NVML knows no such code


@dataclass(frozen=True, slots=True)
class Stub:
    """A library of the driver, under the names that linkers ask for and loaders find."""

    name: str
    soname: str
    header: str
    declaration: re.Pattern[str]


STUBS = (
    Stub("libcuda.so", "libcuda.so.1", "cuda.h", re.compile(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(")),
    Stub(
        "libnvidia-ml.so",
        "libnvidia-ml.so.1",
        "nvml.h",
        re.compile(r"\bnvmlReturn_t\s+(nvml[A-Z]\w*)\s*\("),
    ),
)


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
    to link against, which comes with a driver or, as a stub, with a full toolkit.
    """
    lib = home / "lib"
    _link(home / "lib64", "lib")
    (home / "targets").mkdir(exist_ok=True)
    _link(home / "targets" / "x86_64-linux", "..")
    for library in sorted(lib.glob("lib*.so.*")):
        if match := LIBRARY.fullmatch(library.name):
            _link(lib / match["link"], library.name)
    (lib / "stubs").mkdir(exist_ok=True)
    for stub in STUBS:
        if (home / "include" / stub.header).exists():
            _make_stub(ctx, home, stub, cc)


def _link(path: Path, target: str) -> None:
    if path.is_symlink():
        if os.readlink(path) == target:
            return
        path.unlink()
    elif path.exists():
        return  # shipped by a wheel
    path.symlink_to(target)


def _make_stub(ctx: Context, home: Path, stub: Stub, cc: str) -> None:
    """Link-time stand-in for a driver library: the functions that its header declares.

    Programs linked against it find the driver's own library at run time, by the soname.
    """
    header = home / "include" / stub.header
    functions: set[str] = set()
    # cuda.h renames functions to their current versions, and again for per-thread streams.
    for option in ("-P", "-DCUDA_API_PER_THREAD_DEFAULT_STREAM"):
        preprocess = [cc, "-E", "-P", option, str(header)]
        answer = subprocess.run(preprocess, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise StepFailure(
                f"the C compiler cannot read {stub.header}",
                code="host_compiler_broken",
                cause="\n".join(answer.stderr.splitlines()[-10:]),
                remedy=f"check that `{' '.join(preprocess)}` works",
            )
        functions.update(stub.declaration.findall(answer.stdout))
    folder = home / "lib" / "stubs"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".stub-") as temporary:
        source, made = Path(temporary) / "stub.c", Path(temporary) / stub.name
        source.write_text(
            "".join(
                f"int {name}(void) {{ return {NOT_THE_DRIVER}; }}\n" for name in sorted(functions)
            )
        )
        ctx.run([cc, "-shared", "-fPIC", f"-Wl,-soname,{stub.soname}", "-o", made, source])
        made.replace(folder / stub.name)
