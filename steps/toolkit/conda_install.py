"""Install locked conda packages with py-rattler: `python -m runbook.steps.toolkit.conda_install
REQUEST`, a program of its own.

REQUEST is a JSON file:
  packages   the fields of each `CondaPackage`
  sizes      bytes of each archive by SHA-256, as far as known
  todo       names of the packages that are missing or damaged in the prefix
  prefix, cache   paths

The line `verdict {"error": TEXT}` on standard output, with "" for success, is the only word on how
it went: threads of py-rattler can crash the interpreter while it shuts down, after all work was
done. For the same reason the program ends without shutting down. (A file would not do: the disk
may be full.)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rattler

from runbook.steps.common.store import sha256_file
from runbook.steps.toolkit.conda import PROGRESS, VERDICT
from runbook.steps.toolkit.conda_lock import CondaPackage

INTERVAL = 1.0  # seconds between lines of progress


class Meter(rattler.InstallerReporter):
    """Follows an installation by py-rattler's callbacks, in lines
    `progress <bytes done> <bytes in all, 0 if unknown> <packages linked>/<packages>`."""

    def __init__(self, packages: list[CondaPackage], sizes: Mapping[str, int]) -> None:
        self.sizes = {package.name: sizes.get(package.sha256, 0) for package in packages}
        self.names: dict[int, str] = {}  # by operation, which serves as the callbacks' token
        self.done: dict[str, int] = {}
        self.operations = self.linked = 0
        self.last = 0.0

    def on_transaction_start(self, total_operations: int) -> None:
        self.operations = total_operations

    def on_populate_cache_start(self, operation: int, package_name: str) -> int:
        self.names[operation] = package_name
        return operation

    def on_download_start(self, cache_entry: int) -> int:
        return cache_entry

    def on_download_progress(self, download_idx: int, progress: int, total: int | None) -> None:
        name = self.names[download_idx]
        self.done[name] = progress
        if total:
            self.sizes[name] = total
        self.say()

    def on_populate_cache_complete(self, cache_entry: int) -> None:
        name = self.names[cache_entry]
        self.done[name] = self.sizes.get(name, 0)
        self.say()

    def on_link_complete(self, index: int) -> None:
        self.linked += 1
        self.say(force=self.linked == self.operations)

    def say(self, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self.last >= INTERVAL:
            self.last = now
            total = sum(self.sizes.values()) if all(self.sizes.values()) else 0
            done = sum(self.done.values())
            print(f"{PROGRESS} {done} {total} {self.linked}/{self.operations}", flush=True)


def check_local(packages: list[CondaPackage]) -> None:
    """Hash the archives of `file://` channels: py-rattler installs those unchecked."""
    for package in packages:
        url = urllib.parse.urlsplit(package.url)
        if url.scheme == "file":
            path = Path(urllib.parse.unquote(url.path))
            found = sha256_file(path)
            if found != package.sha256:
                raise ValueError(
                    f"hash mismatch for {path}: expected {package.sha256}, got {found}"
                )


async def install(request: Mapping[str, Any], packages: list[CondaPackage]) -> None:
    todo = set(request["todo"])
    records = [
        rattler.RepoDataRecord(
            rattler.PackageRecord(
                package.name,
                package.version,
                rattler.BuildString(package.build),
                0,  # the lock does not tell; only a solver would ask
                package.subdir,
                noarch="generic" if package.subdir == "noarch" else None,
                depends=list(package.depends),
                sha256=bytes.fromhex(package.sha256),
                md5=bytes.fromhex(package.md5),
            ),
            package.file_name,
            package.url,
            package.channel,
        )
        for package in packages
    ]
    # Certificates, proxies, credentials and mirrors as the user's pixi and rattler have them.
    client = rattler.Client.from_config(rattler.Config.load_from_default_locations("pixi"))
    # Files in the prefix are hard links to the cache: a change to one is a change to the other,
    # so that a cached package must be read before it is believed.
    layer = rattler.PackageCacheLayer(request["cache"])
    cache = rattler.PackageCache.from_layers(
        [layer.with_validation_mode(rattler.ValidationMode.full())]
    )
    # mypy takes the protocol's no-op methods for abstract ones.
    meter = Meter(  # type: ignore[abstract]
        [package for package in packages if package.name in todo], request["sizes"]
    )
    await rattler.install(
        records,
        target_prefix=request["prefix"],
        package_cache=cache,
        reinstall_packages=todo,
        execute_link_scripts=False,
        client=client,
        reporter=meter,
    )


def main(path: str) -> None:
    request = json.loads(Path(path).read_text())
    packages = [
        CondaPackage(**{**fields, "depends": tuple(fields["depends"])})
        for fields in request["packages"]
    ]
    try:
        check_local(packages)
        asyncio.run(install(request, packages))
        error = ""
    except Exception as failure:  # whatever it is, the parent turns it into a StepFailure
        error = f"{type(failure).__name__}: {failure}"
    print(VERDICT, json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)
