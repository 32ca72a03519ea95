"""The step `toolkit`: a CUDA toolkit inside the workspace, without sudo and without conda.

Its packages are named by a lock, checked by hash, and proven by compiling a kernel for the card.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from runbook.protocol import (
    Check,
    Context,
    Model,
    PreconditionNotMet,
    Reason,
    StepFailure,
    Work,
)
from runbook.remedy import Remedy
from runbook.steps.common.stamp import RESULT, Stamp, marks
from runbook.steps.toolkit import stamp

if TYPE_CHECKING:
    from runbook.steps.toolkit.provider import Provider, Toolchain

# Without any of these nvcc cannot compile; paths below CUDA_HOME, as far as they exist there.
KEY_FILES = (
    "bin/nvcc",
    "bin/nvcc.profile",
    "bin/ptxas",
    "bin/cudafe++",
    "bin/fatbinary",
    "bin/nvlink",
    "nvvm/bin/cicc",
    "nvvm/libdevice/libdevice.10.bc",
)


# Reasons by what the stamp says was other.
CHANGED = {
    "provider": ("provider_changed", "it came from another provider"),
    "prefix": ("toolkit_moved", "it was made for another folder"),
    "lock": ("lock_changed", "it is not the one that the lock names"),
    "architecture": ("architecture_changed", "it is proven for another architecture"),
}


class Toolkit:
    version = "1"
    Inputs = Model("runbook.steps.toolkit.models:Inputs")
    Outputs = Model("runbook.steps.toolkit.models:Outputs")

    def files(self, inputs: SimpleNamespace) -> Iterable[Path]:
        return [lock_of(inputs)]

    def check(self, ctx: Context) -> Check:
        prefix = ctx.workspace / ctx.inputs.prefix
        made = stamp.read(prefix)
        reason = self._quick(ctx, prefix, made)
        if reason is None and made is not None and ctx.deep:
            reason = self._deep(ctx, prefix, made)
        if reason is None and made is not None:
            return Check.satisfied(made.made)
        assert reason is not None
        return Check.unsatisfied(reason, work=self._work(ctx, prefix, made))

    def apply(self, ctx: Context) -> None:
        from runbook.steps.common.disk import disk_failure

        require_platform()
        prefix = ctx.workspace / ctx.inputs.prefix
        provider = provider_of(ctx)
        try:
            self._claim(prefix, provider.name)
            toolchain = provider.install(ctx)
            self._prove_and_record(ctx, provider, toolchain)
        except OSError as error:
            raise disk_failure(error, prefix) from error

    def undo(self, ctx: Context) -> None:
        from runbook.steps.common.disk import disk_failure

        prefix = ctx.workspace / ctx.inputs.prefix
        try:
            self._remove(ctx, prefix)
        except OSError as error:
            raise disk_failure(error, prefix) from error

    def _remove(self, ctx: Context, prefix: Path) -> None:
        if stamp.is_claimed(prefix):
            # The stamp, which says that the folder is ours, must go last.
            for entry in list(prefix.iterdir()):
                if entry.name != stamp.NAME:
                    remove(entry)
            remove(prefix)
        for leftover in provider_of(ctx).leftovers():
            remove(leftover)

    def _quick(self, ctx: Context, prefix: Path, made: Stamp | None) -> Reason | None:
        """Why the toolkit is not as wanted, by a few stat calls; None if it is."""
        if made is None:
            return Reason("toolkit_missing", f"no CUDA toolkit in {prefix}")
        marked = made.files.get(RESULT, {})
        change = made.changed(inputs=wanted(ctx), files={RESULT: marks(prefix, marked)})
        if change is not None and change.part == "complete":
            return Reason("toolkit_incomplete", "its installation was not completed")
        if change is not None and change.part == "inputs":
            return Reason(*CHANGED[change.name])
        if change is not None:
            return Reason("toolkit_damaged", str(change))
        outputs = made.made
        gone = [tool for tool in (outputs["cc"], outputs["cxx"]) if not os.access(tool, os.X_OK)]
        if gone:
            return Reason("host_compiler_missing", f"{gone[0]} is gone")
        major = int(outputs["gcc_version"].split(".")[0])
        if ctx.inputs.provider == "pypi" and major < ctx.inputs.gcc_minimum:
            return Reason(
                "host_compiler_too_old",
                f"{outputs['cc']} is {outputs['gcc_version']}, older than the wanted "
                f"{ctx.inputs.gcc_minimum}",
            )
        return None

    def _deep(self, ctx: Context, prefix: Path, made: Stamp) -> Reason | None:
        """The same by reading every file, running nvcc and compiling a kernel."""
        from runbook.steps.toolkit import proof

        damage = provider_of(ctx).damage()
        if damage:
            return Reason("toolkit_damaged", f"{damage[0]} is missing or was changed")
        outputs = made.made
        try:
            version = proof.nvcc_version(Path(outputs["nvcc"]))
            if version != outputs["nvcc_version"]:
                return Reason("toolkit_damaged", f"nvcc says {version}")
            proof.compile_kernel(
                ctx,
                Path(outputs["nvcc"]),
                ctx.inputs.architecture,
                outputs["env"],
                search_path(outputs["path"]),
            )
        except StepFailure as failure:
            return Reason(failure.code, f"{failure.message}: {failure.cause}", failure.remedy)
        return None

    def _work(self, ctx: Context, prefix: Path, made: Stamp | None) -> Work:
        """A whole installation; nothing to speak of if only the proof is to be made."""
        if (
            made is not None
            and made.complete
            and made.inputs.get("lock") == stamp.digest(lock_of(ctx.inputs))
        ):
            return Work(seconds=5)
        try:
            return provider_of(ctx).work()
        except StepFailure:
            return Work()  # an unreadable lock: `apply` says so

    def _claim(self, prefix: Path, provider: str) -> None:
        """Make the prefix ours, empty if the other provider filled it."""
        if prefix.exists() and not prefix.is_dir():
            raise prefix_taken(prefix)
        claimed = stamp.is_claimed(prefix)
        if prefix.is_dir() and not claimed and not all(map(stamp.is_ours, prefix.iterdir())):
            raise prefix_taken(prefix)
        if claimed and stamp.provider_in(prefix) != provider:
            for entry in list(prefix.iterdir()):
                if entry.name != stamp.NAME:
                    remove(entry)
        stamp.claim(prefix, provider)

    def _prove_and_record(self, ctx: Context, provider: Provider, toolchain: Toolchain) -> None:
        from runbook.steps.toolkit import proof

        prefix = provider.prefix
        home, compiler = toolchain.home, toolchain.compiler
        nvcc = home / "bin" / "nvcc"
        path = [str(folder) for folder in toolchain.path]
        version = proof.nvcc_version(nvcc)
        proof.compile_kernel(ctx, nvcc, ctx.inputs.architecture, toolchain.env, search_path(path))
        outputs = {
            "provider": provider.name,
            "cuda_home": str(home),
            "nvcc": str(nvcc),
            "nvcc_version": version,
            "ptxas": str(home / "bin" / "ptxas"),
            "cc": compiler.cc,
            "cxx": compiler.cxx,
            "gcc_version": compiler.version,
            "env": dict(toolchain.env),
            "path": path,
        }
        keys = [home / name for name in KEY_FILES if (home / name).exists()]
        files = marks(prefix, [str(file.relative_to(prefix)) for file in keys])
        made = Stamp(stamp.KIND, wanted(ctx), files={RESULT: files}, made=outputs)
        made.write(prefix / stamp.NAME)


def wanted(ctx: Context) -> dict[str, str]:
    """What decides over a toolkit, as its stamp records it."""
    return {
        "provider": ctx.inputs.provider,
        "prefix": str(ctx.workspace / ctx.inputs.prefix),
        "lock": stamp.digest(lock_of(ctx.inputs)),
        "architecture": ctx.inputs.architecture,
    }


def lock_of(inputs: SimpleNamespace) -> Path:
    """The lock file of the wanted toolkit."""
    import runbook.env

    if inputs.lock is not None:
        return Path(inputs.lock).absolute()
    shipped = (
        "cuda.conda-lock.yml"
        if inputs.provider == "conda"
        else f"cuda-{inputs.components}.requirements.txt"
    )
    return Path(os.fspath(runbook.env.__file__)).parent / shipped


def provider_of(ctx: Context) -> Provider:
    arguments = (
        ctx.inputs,
        lock_of(ctx.inputs),
        ctx.workspace / ctx.inputs.prefix,
        ctx.cache,
    )
    if ctx.inputs.provider == "pypi":
        from runbook.steps.toolkit.pypi import Pypi

        return Pypi(*arguments)
    from runbook.steps.toolkit.conda import Conda

    return Conda(*arguments)


def search_path(folders: Iterable[str]) -> str:
    """PATH with folders put before it."""
    return ":".join([*folders, os.environ.get("PATH", os.defpath)])


def require_platform() -> None:
    machine = os.uname()
    if (machine.sysname, machine.machine) != ("Linux", "x86_64"):
        raise PreconditionNotMet(
            "the locked CUDA toolkits are for Linux on x86_64",
            code="platform_unsupported",
            cause=f"this is {machine.sysname} on {machine.machine}",
            remedy="run on an x86_64 machine with Linux",
        )


def prefix_taken(prefix: Path) -> StepFailure:
    return StepFailure(
        f"{prefix} exists and is not a toolkit of runbook",
        code="prefix_taken",
        remedy=Remedy(
            "run",
            text=f"`mv {prefix} {prefix}.old`, or give `prefix` another folder; then {{command}}",
        ),
        where=str(prefix),
    )


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
