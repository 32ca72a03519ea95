"""The thorough look at an installed build."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

from runbook.protocol import Context
from runbook.steps.common.packages.record import RecordError, faults, parse_record
from runbook.steps.common.stamp import Stamp
from runbook.steps.common.store import sha256_file
from runbook.steps.vllm import environment

_VERSION_TIMEOUT = 300  # seconds; a cold import of vLLM from slow disks takes two minutes


def deep_faults(ctx: Context, folder: Path, stamp: Stamp) -> list[str]:
    """What is not as it was installed: the wheel, a file of any package, the `vllm` program."""
    found = []
    wheel = ctx.workspace / stamp.made["wheel"]
    if sha256_file(wheel) != stamp.made["wheel_sha256"]:
        found.append(f"{wheel} was changed")
    found += [fault for wrong in file_faults(folder).values() for fault in wrong]
    if not found and (reason := version_fault(folder, stamp.made["version"])):
        found.append(reason)
    return found


def file_faults(folder: Path) -> dict[str, list[str]]:
    """By package, the files that are missing or differ from its RECORD. Compiled files are left
    out: some packages bring theirs, which byte-compiling replaces."""
    site = environment.site_packages(folder)
    inside = folder.resolve()

    def opened(path: str) -> IO[bytes] | None:
        """A file of the environment; programs lie beside the packages, other things elsewhere."""
        file = (site / path).parent.resolve() / Path(path).name
        return file.open("rb") if file.is_relative_to(inside) and file.is_file() else None

    found = {}
    for record in sorted(site.glob("*.dist-info/RECORD")):
        try:
            listed = parse_record(record.read_bytes())
        except RecordError as error:
            wrong = [f"{record.parent.name}: {error}"]
        else:
            rows = {path: row for path, row in listed.items() if not path.endswith(".pyc")}
            wrong = list(faults(rows, opened))
        if wrong:
            found[record.parent.name.partition("-")[0]] = wrong
    return found


def version_fault(folder: Path, version: str) -> str:
    """What is wrong with the answer of `vllm --version`; empty if it is `version`."""
    try:
        answer = subprocess.run(
            [folder / "bin" / "vllm", "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_VERSION_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"`vllm --version` did not run: {error}"
    if answer.returncode != 0:
        last = (answer.stderr.strip() or "no output").splitlines()[-1]
        return f"`vllm --version` failed: {last}"
    said = answer.stdout.strip().splitlines()[-1:]
    return "" if said == [version] else f"`vllm --version` says {said}, expected {version}"
