"""Where the kernels that a build of vLLM compiles at run time are kept.

One folder for a wheel and an architecture, in the cache that all workspaces share: compiled once,
they serve every later start, whatever the profile, and no other build ever reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.files import read_json, write_json
from runbook.protocol import Context

VARIABLES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "DG_JIT_CACHE_DIR": "deep_gemm",
    "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR": "flashinfer_autotune",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TILELANG_CACHE_DIR": "tilelang",
    "HUMMING_CACHE_DIR": "humming",
    "CUTE_DSL_CACHE_DIR": "cute_dsl",
    "QUACK_CACHE_DIR": "quack",
    "B12X_COMPILE_CACHE_DIR": "b12x",
}
"""The variables of vLLM 0.33.0 and of what it compiles with, and the folder of each in ours."""


STARTS = "starts.json"
"""Beside the folders: how long servers took to start with them."""


def folder(cache: Path, wheel: str) -> Path:
    """Of all architectures that a wheel was served on."""
    return cache / "jit" / wheel


def environment(ctx: Context, wheel: str) -> dict[str, str]:
    """The variables for a server of this wheel on this machine; none if the wheel is not known."""
    if not wheel:
        return {}
    place = folder(ctx.cache, wheel) / architecture(ctx.facts)
    return {name: str(place / below) for name, below in VARIABLES.items()}


def architecture(facts: Mapping[str, Any]) -> str:
    """As `sm_120`, of several kinds of GPUs all; `cpu` without any."""
    found = {f"sm_{str(gpu['architecture']).replace('.', '')}" for gpu in facts.get("gpus", [])}
    return "-".join(sorted(found)) or "cpu"


def served(ctx: Context, wheel: str) -> bool:
    """Whether a server of this wheel became ready on this architecture before."""
    place = folder(ctx.cache, wheel) / architecture(ctx.facts)
    return bool(wheel) and (place / STARTS).exists()


@dataclass(frozen=True, slots=True)
class Starts:
    """How long starts with the kernels of one folder took: the first, which compiled them, and
    the latest of those after it."""

    spec: Mapping[str, Any]

    def is_first(self) -> bool:
        """Whether no kernel was compiled yet."""
        return not any(file.is_file() for place in folders(self.spec) for file in place.rglob("*"))

    def add(self, seconds: float, *, first: bool) -> dict[str, float | None]:
        """Record a start; what is known of both then."""
        known: dict[str, float] = {}
        if self.spec.get("base_env"):
            file = Path(self.spec["base_env"]["VLLM_CACHE_ROOT"]).parent / STARTS
            known = read_json(file) or {}
            known["first" if first else "later"] = seconds
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, known)
        return {
            "start_seconds": seconds,
            "first_start_seconds": known.get("first"),
            "later_start_seconds": known.get("later"),
        }


def folders(spec: Mapping[str, Any]) -> list[Path]:
    """The caches of a service, by its environment."""
    values = {**spec.get("base_env", {}), **spec["env"]}
    return [Path(values[name]) for name in VARIABLES if name in values]
