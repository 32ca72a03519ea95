"""The provider `pypi`: NVIDIA's CUDA wheels, finished into a CUDA_HOME; the machine's gcc."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

from runbook.protocol import Context, StepFailure, Work
from runbook.remedy import Remedy
from runbook.steps.common.packages import pip_command
from runbook.steps.common.packages.pins import Pin, read_pins
from runbook.steps.common.packages.wheel import Wheel, WheelError
from runbook.steps.common.store import Store
from runbook.steps.toolkit import host_compiler, record, tree
from runbook.steps.toolkit.host_compiler import HostCompiler
from runbook.steps.toolkit.provider import Toolchain

UNPACKED_RATIO = 2.8  # measured: the 0.1 GB of `compiler` unpack to 0.27 GB
DOWNLOAD_BYTES_PER_SECOND = 50e6  # assumed, for plans


class Pypi:
    name = "pypi"

    def __init__(self, inputs: SimpleNamespace, lock: Path, prefix: Path, cache: Path) -> None:
        self.lock = lock
        self.prefix = prefix
        self.gcc_minimum: int = inputs.gcc_minimum
        self.store = Store(cache)
        # One for each prefix, beside the cache it feeds; and one beside the prefix.
        owner = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:16]
        self.downloads = cache / "wheels" / f"partial-{owner}"
        self.staging = prefix.with_name(f"{prefix.name}.partial")

    def leftovers(self) -> list[Path]:
        return [self.staging, self.downloads]

    def work(self) -> Work:
        size = sum(pin.bytes for pin in read_pins(self.lock))
        return Work(
            bytes=size,
            seconds=5 + size / DOWNLOAD_BYTES_PER_SECOND,
            disk=int(size * (1 + UNPACKED_RATIO)),
        )

    def damage(self) -> list[str]:
        return [
            path
            for pin in read_pins(self.lock)
            if (path := record.damage(self.prefix, pin.dist_info))
        ]

    def install(self, ctx: Context) -> Toolchain:
        host_compiler.find(self.gcc_minimum)  # before anything is downloaded in vain
        pins = read_pins(self.lock)
        self._remove_strangers(ctx, pins)
        todo = [pin for pin in pins if record.damage(self.prefix, pin.dist_info)]
        if todo:
            ctx.log(f"to install: {', '.join(f'{pin.name} {pin.version}' for pin in todo)}")
            self._unpack(ctx, todo, self._fetch(ctx, todo))
        home = tree.find_home(self.prefix)
        compiler = host_compiler.find(self.gcc_minimum, host_compiler.newest_gcc(home))
        tree.finish(ctx, home, compiler.cc)
        return toolchain(home, compiler)

    def _remove_strangers(self, ctx: Context, pins: list[Pin]) -> None:
        """Remove what another lock installed here, half installations included."""
        wanted = {pin.dist_info for pin in pins}
        for metadata in sorted(self.prefix.glob("*.dist-info")):
            if metadata.name not in wanted:
                ctx.log(f"removing {metadata.name.removesuffix('.dist-info')}")
                record.remove(self.prefix, metadata.name)
                shutil.rmtree(metadata, ignore_errors=True)

    def _fetch(self, ctx: Context, pins: list[Pin]) -> list[Path]:
        """The files of the wheels, from the cache or else from the package index."""
        self._adopt(pins)  # what a killed download had completed
        missing = [pin for pin in pins if self.store.find(pin.sha256) is None]
        if missing:
            try:
                pip_command.download(ctx, missing, self.downloads)
            finally:
                self._adopt(missing)
        files = [self.store.find(pin.sha256) for pin in pins]
        lost = [pin.name for pin, file in zip(pins, files, strict=True) if file is None]
        if lost:
            raise StepFailure(
                "pip downloaded no wheel with the locked digest",
                code="hash_mismatch",
                cause=", ".join(lost),
                remedy=Remedy("run"),
                retryable=True,
            )
        return [file for file in files if file is not None]

    def _adopt(self, pins: list[Pin]) -> None:
        self.store.adopt(self.downloads, {pin.sha256 for pin in pins})
        shutil.rmtree(self.downloads, ignore_errors=True)

    def _unpack(self, ctx: Context, pins: list[Pin], files: list[Path]) -> None:
        for file in files:
            _require_own_tree(file)
        shutil.rmtree(self.staging, ignore_errors=True)
        try:
            unpacked = pip_command.unpack(ctx, files, self.staging, unpacked_bytes(files))
            for pin in pins:
                record.move(unpacked, self.prefix, pin.dist_info)
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)


def _require_own_tree(file: Path) -> None:
    """Refuse a wheel whose members or RECORD lie outside the folder it is unpacked into."""
    try:
        with Wheel(file) as wheel:
            wheel.record()
    except WheelError as error:
        raise StepFailure(
            f"{file.name} is not a wheel that can be installed",
            code="wheel_malformed",
            cause=str(error),
            remedy="take it out of the lock, and tell its publisher",
        ) from error


def unpacked_bytes(files: list[Path]) -> int:
    total = 0
    for file in files:
        with zipfile.ZipFile(file) as archive:
            total += sum(member.file_size for member in archive.infolist())
    return total


def toolchain(home: Path, compiler: HostCompiler) -> Toolchain:
    """How a build and Triton use the finished tree. Every tool that would search PATH is told
    by name, since another nvcc there would be believed first."""
    return Toolchain(
        home,
        compiler,
        {
            "CUDA_HOME": str(home),
            "CUDA_PATH": str(home),
            "CUDACXX": str(home / "bin" / "nvcc"),
            "CC": compiler.cc,
            "CXX": compiler.cxx,
            "CUDAHOSTCXX": compiler.cxx,
            "NVCC_CCBIN": compiler.cxx,
            "LIBRARY_PATH": f"{home / 'lib'}:{home / 'lib' / 'stubs'}",
            "TRITON_PTXAS_PATH": str(home / "bin" / "ptxas"),
            "TRITON_PTXAS_BLACKWELL_PATH": str(home / "bin" / "ptxas"),
        },
        [home / "bin"],
    )
