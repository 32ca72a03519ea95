"""Proof that a toolkit works: a kernel compiled to machine code for the wanted card."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy

EM_CUDA = 190
# cuda_fp16.h pulls in the headers of libcu++, which come in a package of their own.
KERNEL = """\
#include <cuda_fp16.h>
__global__ void axpy(int n, float a, const __half *x, float *y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += a * __half2float(x[i]);
}
"""


class NotACubin(ValueError):
    """The bytes are not machine code for an NVIDIA GPU."""


def cubin_architecture(data: bytes) -> int:
    """The SM number (120 for compute capability 12.0) in the ELF header of a cubin.

    e_flags hold it in bits 8 to 15 since CUDA's ELF ABI version 8 (CUDA 13), in bits 0 to 7
    before: EF_CUDA_SM in LLVM's BinaryFormat/ELF.h.
    """
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01":
        raise NotACubin("not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", data, 18)
    if machine != EM_CUDA:
        raise NotACubin(f"an ELF file for machine {machine}, not {EM_CUDA} (EM_CUDA)")
    (flags,) = struct.unpack_from("<I", data, 48)
    return int(flags >> 8 & 0xFF if data[8] >= 8 else flags & 0xFF)


def sm(architecture: str) -> tuple[str, int]:
    """`12.0a` as nvcc names it (`sm_120a`) and as a cubin does (120)."""
    digits = re.sub(r"\D", "", architecture)
    return f"sm_{architecture.replace('.', '')}", int(digits)


def nvcc_version(nvcc: Path) -> str:
    """What `nvcc --version` answers, such as 13.0.88."""
    try:
        answer = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
        cause = (answer.stdout + answer.stderr).strip()[-500:] or f"exit {answer.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _does_not_run(nvcc, str(error)) from error
    found = re.search(r"\bV(\d+\.\d+\.\d+)", answer.stdout)
    if answer.returncode != 0 or found is None:
        raise _does_not_run(nvcc, cause)
    return found[1]


def _does_not_run(nvcc: Path, cause: str) -> StepFailure:
    return StepFailure(
        "nvcc does not answer `--version`",
        code="nvcc_does_not_run",
        cause=cause,
        remedy=Remedy("run", ("--force", "{step}"), text="{command} repairs the toolkit"),
        where=str(nvcc),
    )


def compile_kernel(
    ctx: Context, nvcc: Path, architecture: str, env: Mapping[str, str], path: str
) -> None:
    """Compile one kernel with `nvcc` and look at the result; raise `StepFailure` if it is not
    machine code for `architecture`. `path` is the PATH of a build with this toolkit."""
    name, number = sm(architecture)
    # The caller's own nvcc options must neither help nor hinder.
    clean = {"NVCC_APPEND_FLAGS": "", "NVCC_PREPEND_FLAGS": "", **env, "PATH": path}
    with tempfile.TemporaryDirectory(prefix="runbook-toolkit-") as folder:
        source, cubin = Path(folder) / "axpy.cu", Path(folder) / "axpy.cubin"
        source.write_text(KERNEL)
        ctx.run(
            [nvcc, f"-arch={name}", "-cubin", "-o", cubin, source],
            env={**clean, "TMPDIR": folder},
            failure=StepFailure(
                f"nvcc cannot compile a kernel for {name}",
                code="nvcc_cannot_compile",
                remedy="read the compiler's words above; another gcc on PATH, or a toolkit that "
                f"knows {name}, may be needed",
            ),
        )
        try:
            made = cubin_architecture(cubin.read_bytes())
        except (OSError, NotACubin) as error:
            raise StepFailure(
                "nvcc made no cubin",
                code="not_a_cubin",
                cause=str(error),
                remedy=Remedy("run", ("--force", "{step}"), text="{command} repairs the toolkit"),
            ) from error
    if made != number:
        raise StepFailure(
            f"nvcc compiled for sm_{made} instead of {name}",
            code="wrong_architecture",
            remedy="unset NVCC_APPEND_FLAGS and NVCC_PREPEND_FLAGS",
        )
    ctx.log(f"compiled a kernel to a {name} cubin")
