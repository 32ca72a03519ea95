"""The machine's gcc: nvcc needs one, and takes no newer one than it knows."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from runbook.protocol import PreconditionNotMet

NEWEST_TRIED = 30
LIMIT = re.compile(r"#if __GNUC__ > (\d+)")


@dataclass(frozen=True, slots=True)
class HostCompiler:
    """Absolute paths of gcc and g++ of one version."""

    cc: str
    cxx: str
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def newest_gcc(home: Path) -> int:
    """The newest gcc major that the nvcc of a CUDA_HOME accepts, from its host_config.h."""
    header = home / "include" / "crt" / "host_config.h"
    found = LIMIT.search(header.read_text(errors="replace"))
    return int(found[1]) if found else NEWEST_TRIED


def find(minimum: int, maximum: int = NEWEST_TRIED) -> HostCompiler:
    """`gcc` on PATH if its major version is in the range, else the newest `gcc-N` that is.

    Raises `PreconditionNotMet` if there is none.
    """
    rejected = []
    for suffix in ["", *(f"-{major}" for major in range(maximum, minimum - 1, -1))]:
        cc, cxx = shutil.which(f"gcc{suffix}"), shutil.which(f"g++{suffix}")
        if cc is None:
            continue
        version = version_of(cc)
        if not version:
            rejected.append(f"{cc} is not gcc")
        elif not minimum <= int(version.split(".")[0]) <= maximum:
            rejected.append(f"{cc} is {version}")
        elif cxx is None:
            rejected.append(f"{cc} is {version}, but there is no g++{suffix}")
        else:
            return HostCompiler(cc, cxx, version)
    wanted = f"{minimum} or newer" if maximum == NEWEST_TRIED else f"{minimum} to {maximum}"
    package = min(max(minimum, 13), maximum)
    raise PreconditionNotMet(
        f"nvcc needs a C++ compiler: no gcc {wanted} with its g++ on PATH",
        code="host_compiler_missing",
        cause="; ".join(rejected) or "neither `gcc` nor `gcc-N` is on PATH",
        remedy=f"install one (Debian, Ubuntu: `apt-get install gcc-{package} g++-{package}`), or "
        "use the provider `conda`, which brings its own",
    )


def version_of(cc: str) -> str:
    """The full version of a gcc; "" if the program is something else or does not answer."""
    try:
        answer = subprocess.run(
            [cc, "-dumpfullversion"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = answer.stdout.strip()
    return text if answer.returncode == 0 and re.fullmatch(r"\d+(\.\d+)*", text) else ""
