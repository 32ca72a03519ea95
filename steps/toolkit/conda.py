"""The provider `conda`: the packages of a conda lock, host compiler and build tools included."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from runbook.files import read_json, write_json
from runbook.protocol import Context, StepFailure, Work
from runbook.remedy import Remedy
from runbook.steps.common import tether
from runbook.steps.common.packages.symptoms import DISK_FULL, Symptom, diagnose
from runbook.steps.toolkit import conda_meta, cxx_runtime, host_compiler
from runbook.steps.toolkit.conda_lock import CondaPackage, read_lock
from runbook.steps.toolkit.host_compiler import HostCompiler
from runbook.steps.toolkit.provider import Toolchain

UNPACKED_RATIO = 3.0  # of the archives' size: CUDA's libraries compress to about a third
DOWNLOAD_BYTES_PER_SECOND = 50e6  # assumed, for plans
# The first words of the lines in which `conda_install` speaks.
PROGRESS, VERDICT = "progress", "verdict"
TRIPLET = "x86_64-conda-linux-gnu"
TARGET = "targets/x86_64-linux"

SYMPTOMS = (
    DISK_FULL,
    Symptom(
        r"hash mismatch",
        "hash_mismatch",
        "the channel gave a package that is not the locked one",
        Remedy(
            "run",
            text="{command}; if it stays so, the channel or mirror serves another file under this "
            "name: use another `channel_alias`",
        ),
        retryable=True,
    ),
    Symptom(
        r"\b40[13] (Unauthorized|Forbidden)|status client error \(40[13]",
        "access_denied",
        "the channel refuses access",
        "store credentials for its host in ~/.rattler/credentials.json (`pixi auth login HOST`)",
    ),
    Symptom(
        r"status client error \(4\d\d",
        "package_not_found",
        "the channel does not have a locked package",
        "name a complete mirror in `channel_alias`, or lock again where the channel can be "
        "reached (`make lock`)",
    ),
    Symptom(
        r"status server error \(5\d\d|error sending request|dns error|[Cc]onnect(ion)? "
        r"|connection (closed|reset|refused)|timed out|error decoding response body"
        r"|end of file before message length|IncompleteMessage",
        "channel_unreachable",
        "the conda channel cannot be reached, or broke off",
        Remedy(
            "run",
            text="check the network and proxy (HTTPS_PROXY), name a mirror in `channel_alias`, or "
            "use the provider `pypi`; then {command}",
        ),
        retryable=True,
    ),
    Symptom(
        r"[Ii]nvalid (checksum|[Zz]ip|tar)|zstd|[Dd]ecompress|unexpected (end|EOF)|early eof"
        r"|corrupt",
        "package_corrupt",
        "a downloaded package is corrupt",
        Remedy(
            "run",
            text="{command}; if it stays so, something between here and the channel alters "
            "downloads: name another mirror in `channel_alias`",
        ),
        retryable=True,
    ),
    Symptom(
        r"No such file or directory|FileNotFoundError",
        "package_not_found",
        "the channel folder does not have a locked package",
        "complete the folder that `channel_alias` names",
    ),
    Symptom(
        r"Permission denied|Read-only file system",
        "cannot_write",
        "the toolkit cannot be written",
        Remedy("run", text="make the workspace and the cache writable, then {command}"),
    ),
)


class Conda:
    name = "conda"

    def __init__(self, inputs: SimpleNamespace, lock: Path, prefix: Path, cache: Path) -> None:
        self.lock = lock
        self.prefix = prefix
        self.channel_alias: str | None = inputs.channel_alias
        self.cache = cache / "conda"
        self.staging = prefix.with_name(f"{prefix.name}.partial")

    def leftovers(self) -> list[Path]:
        return [self.staging]

    def packages(self) -> list[CondaPackage]:
        return read_lock(self.lock, self.channel_alias)

    def sizes(self) -> dict[str, int]:
        """Bytes of each archive by SHA-256, from the file beside the lock; the lock's own format
        has none. Empty for a lock without such a file."""
        sizes = read_json(sizes_beside(self.lock))
        return sizes if isinstance(sizes, dict) else {}

    def work(self) -> Work:
        sizes = self.sizes()
        size = sum(sizes.get(package.sha256, 0) for package in self.packages())
        return Work(
            bytes=size,
            seconds=10 + size / DOWNLOAD_BYTES_PER_SECOND,
            disk=int(size * (1 + UNPACKED_RATIO)),
        )

    def damage(self) -> list[str]:
        return [
            path for package in self.packages() if (path := conda_meta.damage(self.prefix, package))
        ]

    def install(self, ctx: Context) -> Toolchain:
        packages = self.packages()
        for name in conda_meta.drop_torn_records(self.prefix):
            ctx.log(f"dropped the half-written record {name}")
        todo = [package for package in packages if conda_meta.damage(self.prefix, package)]
        strangers = self._installed() - {package.metadata for package in packages}
        if todo or strangers:
            for word, names in (
                ("install", [f"{package.name} {package.version}" for package in todo]),
                ("remove", [name.removesuffix(".json") for name in sorted(strangers)]),
            ):
                if names:
                    ctx.log(f"to {word}: {', '.join(names)}")
            self._run_installer(ctx, packages, todo)
        return toolchain(self.prefix)

    def _installed(self) -> set[str]:
        return {path.name for path in self.prefix.glob("conda-meta/*.json")}

    def _run_installer(
        self, ctx: Context, packages: list[CondaPackage], todo: list[CondaPackage]
    ) -> None:
        """Run `conda_install`, which says on standard output how far it is and how it went."""
        verdict: str | None = None

        def on_line(line: str) -> None:
            nonlocal verdict
            word, _, rest = line.partition(" ")
            if word == PROGRESS:
                done, total, linked = rest.split()
                ctx.progress(int(done), int(total) or None, "bytes", f"installed {linked}")
            elif word == VERDICT:
                verdict = json.loads(rest)["error"]

        died: StepFailure | None = None
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)
        request = self.staging / "request.json"
        try:
            write_json(
                request,
                {
                    "packages": [asdict(package) for package in packages],
                    "sizes": self.sizes(),
                    "todo": [package.name for package in todo],
                    "prefix": str(self.prefix),
                    "cache": str(self.cache),
                },
            )
            ctx.run(tether.command("runbook.steps.toolkit.conda_install", request), on_line=on_line)
        except StepFailure as failure:
            died = failure  # no verdict: it may have crashed after its work was done
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)
        if verdict is None:
            raise StepFailure(
                "the installer of conda packages ended before it was done",
                code="installer_died",
                cause=died.cause or died.message if died else "",
                remedy=Remedy("run", text="{command}: what is installed is kept"),
                retryable=True,
            )
        if verdict:
            refused = diagnose(verdict, SYMPTOMS) or StepFailure(
                "the conda packages cannot be installed",
                code="conda_install_failed",
                remedy=Remedy("run", text="{command}; if it stays so, use the provider `pypi`"),
            )
            refused.cause = chain(verdict)
            raise refused


def chain(error: str) -> str:
    """py-rattler's words, from the package down to the reason, without the repetitions."""
    kept: list[str] = []
    for line in error.splitlines():
        if not kept or line.removeprefix("Caused by: ") not in kept[-1]:
            kept.append(line)
    return "\n".join(kept)


def sizes_beside(lock: Path) -> Path:
    return lock.with_suffix(".sizes.json")


def toolchain(prefix: Path) -> Toolchain:
    """How a build and Triton use the prefix: what activating it as a conda environment would set.

    Headers and libraries of CUDA lie in `targets/x86_64-linux`, where nvcc finds them by its
    profile; g++ and torch must be told.
    """
    tools = prefix / "bin"
    cc, cxx = str(tools / f"{TRIPLET}-gcc"), str(tools / f"{TRIPLET}-g++")
    version = host_compiler.version_of(cc)
    if not version:
        raise StepFailure(
            "the lock's packages have no working C++ compiler",
            code="host_compiler_missing",
            cause=f"{cc} does not answer",
            remedy="use a lock that names gcc_linux-64 and gxx_linux-64",
        )
    include = prefix / TARGET / "include"
    flags = f"-I{include} -I{include / 'cccl'}"
    runtime = cxx_runtime.search_path(prefix)
    return Toolchain(
        prefix,
        HostCompiler(cc, cxx, version),
        {
            "CUDA_HOME": str(prefix),
            "CUDA_PATH": str(prefix),
            "CUDA_INC_PATH": str(include),
            "CUDACXX": str(tools / "nvcc"),
            "CC": cc,
            "CXX": cxx,
            "CUDAHOSTCXX": cxx,
            "NVCC_CCBIN": cxx,
            "CFLAGS": flags,
            "CXXFLAGS": flags,
            "CMAKE_PREFIX_PATH": str(prefix),
            "LIBRARY_PATH": f"{prefix / 'lib'}:{prefix / TARGET / 'lib' / 'stubs'}",
            "TRITON_PTXAS_PATH": str(tools / "ptxas"),
            "TRITON_PTXAS_BLACKWELL_PATH": str(tools / "ptxas"),
            **({"LD_LIBRARY_PATH": runtime} if runtime else {}),
        },
        [tools],
    )
