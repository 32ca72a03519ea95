"""FlashInfer's precompiled kernels, by vLLM's own command.

`vllm download-kernels` of 0.33.0 has pip or uv install the packages flashinfer-cubin and
flashinfer-jit-cache, of the version and CUDA at hand, from FlashInfer's index (flashinfer.ai/whl)
into the environment. No lock pins them, so what came is recorded by digest.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from runbook.protocol import Context
from runbook.steps.common.service import inherited_environment

PACKAGES = ("flashinfer_cubin", "flashinfer_jit_cache")
SECONDS = 900.0


def fetch(ctx: Context, vllm: Path) -> dict[str, str]:
    """Run the command, and give what is installed then. A source that cannot be reached is told and
    is no failure: the kernels are compiled here instead."""
    ctx.log("vllm download-kernels")
    try:
        done = subprocess.run(
            [vllm, "download-kernels"],
            env=inherited_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        why = "" if done.returncode == 0 else _last(done.stdout + done.stderr)
    except subprocess.TimeoutExpired:
        why = f"it takes longer than {SECONDS:.0f} seconds"
    except OSError as error:
        why = str(error)
    if why:
        ctx.notice(f"FlashInfer's precompiled kernels were not fetched: {why}; they are compiled")
    return installed(vllm)


def installed(vllm: Path) -> dict[str, str]:
    """`name==version` and the SHA-256 of its RECORD, which has those of all its files, for each of
    the packages in the environment of this program."""
    found = {}
    for site in sorted(vllm.parent.parent.glob("lib/python3.*/site-packages")):
        for name in PACKAGES:
            for record in sorted(site.glob(f"{name}-*.dist-info/RECORD")):
                version = record.parent.name.removesuffix(".dist-info").removeprefix(f"{name}-")
                digest = hashlib.sha256(record.read_bytes()).hexdigest()
                found[f"{name.replace('_', '-')}=={version}"] = digest
    return found


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
