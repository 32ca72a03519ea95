"""The vLLM that a book is for: the newest lock for this machine, and what it knows by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from runbook.errors import USAGE, RunbookError
from runbook.steps.checkpoint.targets import PATCHES, SERIES_FILE, Target, UnknownTarget
from runbook.steps.common.vllm_release import ENV, Release, load_release, lock_path

CPU = "-cpu"
"""How the targets end that run without a GPU."""

NEEDS: dict[str, dict[str, Any]] = {
    # The wheels for GPUs are made with CUDA 13, which needs this driver; kernels that are compiled
    # while a model is loaded need a compiler of that age.
    "gpu": {"driver": "580", "cuda": "13.0", "compiler": 11},
    "cpu": {"compiler": 9},
}


@dataclass(frozen=True)
class Build:
    """A locked vLLM release, by the name of its target."""

    target: str

    @property
    def cpu(self) -> bool:
        return self.target.endswith(CPU)

    @cached_property
    def release(self) -> Release:
        return load_release(lock_path(self.target, None))

    @cached_property
    def known(self) -> dict[str, Any]:
        """Its registries, as `runbook.env.registries` writes them."""
        found: dict[str, Any] = json.loads(
            (ENV / f"vllm-{self.target}.registries.json").read_bytes()
        )
        return found

    def serves(self, architectures: tuple[str, ...]) -> bool:
        return bool(set(architectures) & set(self.known["architectures"]))

    @cached_property
    def own_series(self) -> str:
        """The shipped patch series of the same name; "" if there is none."""
        return self.target if (PATCHES / self.target / SERIES_FILE).is_file() else ""

    def checks(self, series: str) -> Target | None:
        """The target of the linter; None if it knows no such release."""
        try:
            return Target(self.target, series)
        except UnknownTarget:
            return None


def targets() -> list[str]:
    """The targets that there is a lock and a registry of, the newest release first."""
    from packaging.version import Version

    names = [
        path.name.removeprefix("vllm-").removesuffix(".lock.json")
        for path in ENV.glob("vllm-*.lock.json")
        if path.with_name(path.name.replace(".lock.", ".registries.")).is_file()
    ]
    return sorted(names, key=lambda name: Version(name.removesuffix(CPU)), reverse=True)


def build(target: str | None, gpus: int) -> tuple[Build, str]:
    """The build to serve with, and why. Raises `RunbookError` for a target that is not there."""
    there = targets()
    if target is not None:
        if target not in there:
            raise RunbookError(
                f"no vLLM {target!r} is locked",
                code="unknown_target",
                exit_code=USAGE,
                remedy=f"name one of {', '.join(there)} with --target, or none",
            )
        return Build(target), "named with --target"
    kind = [name for name in there if name.endswith(CPU) == (not gpus)]
    what = "this machine's GPUs" if gpus else "a machine without a GPU"
    return Build(kind[0]), f"the newest locked release for {what}"
