from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runbook.planning.context import StepContext, console
from runbook.protocol import Check
from runbook.steps.toolkit import Toolkit
from tests.steps.toolkit.channel import (
    PLACEHOLDER,
    Package,
    Server,
    build_channel,
    lock_for,
    serve,
    write_lock,
)


def cubin(sm: int) -> bytes:
    """The ELF header of a cubin as CUDA 13 writes it, and no more."""
    return struct.pack(
        "<6sBBB7xHHIQQQI12x",
        b"\x7fELF\x02\x01",
        1,
        0x41,
        8,
        2,
        190,
        1,
        0,
        0,
        0,
        sm << 8 | 0x06000002,
    )


def fake_nvcc(version: str = "13.2.78", sm: int = 120) -> bytes:
    """Stands in for the nvcc of conda packages, of which there are none here: it answers
    `--version`, insists on its host compiler, and writes a cubin's header."""
    octal = "".join(f"\\{byte:03o}" for byte in cubin(sm))
    return f"""#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release x, V{version}"; exit; fi
[ -x "$NVCC_CCBIN" ] || {{ echo "no host compiler"; exit 1; }}
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
printf '{octal}' > "$out"
""".encode()


def cuda_packages() -> list[Package]:
    """A toolkit of hand-made conda packages, with every kind of path that a package can have."""
    gcc = b'#!/bin/sh\n[ "$1" = -dumpfullversion ] && echo 14.3.0\n'
    header = "targets/x86_64-linux/include/cuda_runtime.h"
    return [
        Package("cuda-version", "13.2", {}, subdir="noarch"),
        Package(
            "cuda-nvcc-tools",
            "13.2.78",
            {
                "bin/nvcc": fake_nvcc(),
                "bin/nvcc.profile": b"TOP = $(_HERE_)/..\n",
                "bin/ptxas": b"#!/bin/sh\n" + b"# ptxas\n" * 30_000,
                "nvvm/bin/cicc": os.urandom(500_000),
            },
            ("cuda-version >=13.2,<13.3.0a0", "gcc_linux-64"),
        ),
        Package("cuda-cudart-dev_linux-64", "13.2.75", {header: b"// cudart\n"}, subdir="noarch"),
        Package(
            "libcublas",
            "13.4.0.1",
            {"lib/libcublas.so.13": os.urandom(1_000_000)},
            links={"lib/libcublas.so": "libcublas.so.13"},
        ),
        Package(
            "gcc_linux-64",
            "14.3.0",
            {f"bin/x86_64-conda-linux-gnu-{tool}": gcc for tool in ("gcc", "g++")},
        ),
        Package("ccache", "4.12.2", {"bin/ccache": f"#!{PLACEHOLDER}/bin/sh\n".encode()}),
    ]


@dataclass
class Bench:
    """A workspace and a cache, and the step driven in them."""

    root: Path
    defaults: dict[str, Any] = field(default_factory=dict)
    log: io.StringIO = field(default_factory=io.StringIO)
    progress: list[tuple[float, float | None]] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def prefix(self) -> Path:
        return self.workspace / "toolkit"

    def context(self, deep: bool = False, **inputs: Any) -> StepContext:
        values = Toolkit.Inputs(**{**self.defaults, **inputs}).model_dump()
        return console(
            "toolkit",
            self.workspace,
            values,
            cache=self.cache,
            deep=deep,
            out=self.log,
            on_progress=lambda told: self.progress.append((told["done"], told["total"])),
        )

    def apply(self, **inputs: Any) -> None:
        Toolkit().apply(self.context(**inputs))

    def check(self, deep: bool = False, **inputs: Any) -> Check:
        check = Toolkit().check(self.context(deep=deep, **inputs))
        if check.ok:
            Toolkit.Outputs.model_validate(check.outputs)
        return check

    def undo(self) -> None:
        Toolkit().undo(self.context())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, to be full soon."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@dataclass
class CondaBench(Bench):
    """The same with a channel of hand-made packages on 127.0.0.1."""

    packages: list[Package] = field(default_factory=list)
    server: Server = field(default_factory=lambda: Server(Path()))

    @property
    def channel(self) -> Path:
        return self.root / "channels" / "conda-forge"

    def archive(self, name: str) -> str:
        return next(package.file_name for package in self.packages if package.name == name)

    def write_lock(self, edit: Callable[[dict[str, Any]], None] = lambda document: None) -> None:
        document = lock_for(self.packages, self.channel, self.server.base)
        edit(document)
        write_lock(self.root / "cuda.conda-lock.yml", document)


@pytest.fixture(scope="session")
def built_channel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Package]]:
    channel, packages = tmp_path_factory.mktemp("built") / "conda-forge", cuda_packages()
    build_channel(channel, packages)
    return channel, packages


@pytest.fixture
def conda(
    tmp_path: Path, built_channel: tuple[Path, list[Package]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CondaBench]:
    # Neither the configuration nor the proxy of whoever runs the tests may interfere.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    channel, packages = built_channel
    bench = CondaBench(tmp_path, packages=list(packages))
    shutil.copytree(channel, bench.channel)
    with serve(bench.channel.parent) as bench.server:
        bench.write_lock()
        bench.defaults = {"provider": "conda", "lock": str(tmp_path / "cuda.conda-lock.yml")}
        yield bench
