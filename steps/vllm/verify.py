"""The thorough look at an installed build."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runbook.protocol import Context
from runbook.steps.vllm import environment
from runbook.steps.vllm.build import NAME
from runbook.steps.vllm.store import sha256_file
from runbook.steps.vllm.wheel import faults, parse_record

_VERSION_TIMEOUT = 300  # seconds; a cold import of vLLM from slow disks takes two minutes


def deep_faults(ctx: Context, folder: Path, stamp: Mapping[str, Any]) -> list[str]:
    """What is not as it was installed: the wheel, vLLM's files, the `vllm` program."""
    found = []
    wheel = ctx.workspace / stamp["wheel"]
    if sha256_file(wheel) != stamp["wheel_sha256"]:
        found.append(f"{wheel} was changed")
    site = environment.site_packages(folder)
    record = site / f"{NAME}-{stamp['version']}.dist-info" / "RECORD"
    if not record.is_file():
        return [*found, f"{record} is missing"]
    found += faults(parse_record(record.read_bytes()), lambda path: (site / path).open("rb"))
    if not found and (reason := version_fault(folder, stamp["version"])):
        found.append(reason)
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
