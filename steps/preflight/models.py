"""Inputs and outputs of the preflight step. A threshold that is null is not looked at."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from runbook.steps.common.models import Strict
from runbook.steps.preflight.checks import CHECKS


class Hardware(Strict):
    """One kind of machine that the book is for."""

    gpus: int = Field(ge=1, description="How many NVIDIA GPUs.")
    gpu_name: str | None = Field(
        None, description="Words that their name has, as `Max-Q`, where cards differ by it alone."
    )
    gpu_architecture: str | None = Field(
        None, pattern=r"^\d+\.\d$", description="Their compute capability, as `12.0`."
    )
    gpu_memory_mib: int | None = Field(None, ge=1, description="Memory of each, in MiB.")
    values: dict[str, Any] = Field(
        default_factory=dict, description="What later steps take from it (`outputs.values`)."
    )


class Inputs(Strict):
    """What this machine must have."""

    checks: list[str] = Field(
        default_factory=list, description="The checks to make, by name; all if empty."
    )
    skip: list[str] = Field(default_factory=list, description="Checks to leave out, by name.")

    hardware: dict[str, Hardware] = Field(
        default_factory=dict,
        description="Alternatives by name: the first that this machine meets takes the place of "
        "`gpus`, `gpu_name`, `gpu_architecture` and `gpu_memory_mib`.",
    )
    gpus: int | None = Field(None, ge=1, description="How many NVIDIA GPUs.")
    devices: list[str] = Field(
        default_factory=list,
        description="The GPUs to choose from, each by its number or the beginning of its UUID, as "
        "`nvidia-smi -L` has them; all if empty.",
    )
    gpu_name: str | None = Field(None, description="Words that their name has.")
    gpu_architecture: str | None = Field(
        None, pattern=r"^\d+\.\d$", description="Their compute capability, as `12.0`."
    )
    gpu_memory_mib: int | None = Field(None, ge=1, description="Memory of each, in MiB.")
    gpu_used_mib: int = Field(
        500, ge=0, description="Memory of each that may be in use already, in MiB."
    )
    driver: str | None = Field(None, description="The least version of the driver, as `570`.")
    cuda: str | None = Field(
        None, pattern=r"^\d+\.\d+$", description="The CUDA that the build is made for, as `13.0`."
    )
    driver_advised: str | None = Field(None, description="A version below it gives a warning.")

    disk_gb: float | None = Field(
        None,
        gt=0,
        description="Free space in the workspace, in GB (10^9 bytes); what the "
        "workspace holds already counts as free.",
    )
    disk_advised_gb: float | None = Field(None, gt=0, description="Less gives a warning.")
    memory_gib: float | None = Field(None, gt=0, description="Memory of the machine, in GiB.")
    memory_advised_gib: float | None = Field(None, gt=0, description="Less gives a warning.")
    memory_available_gib: float | None = Field(
        None, gt=0, description="Memory that is free now, in GiB, until our server runs."
    )
    shm_gib: float | None = Field(None, gt=0, description="Size of /dev/shm; less warns.")
    nofile: int | None = Field(None, ge=1, description="Open files; a lower limit warns.")
    memlock_unlimited: bool = Field(
        False, description="Whether a limit on locked memory gives a warning."
    )

    compiler: int | None = Field(None, ge=1, description="The least major version of gcc and g++.")
    python: str | None = Field(
        None, pattern=r"^3\.\d+$", description="The least version of Python, as `3.11`."
    )
    vllm_lock: str | None = Field(
        None,
        description="Locked vLLM release (a file name in env/, or a path) whose own wheel of "
        "PyTorch some package index must offer.",
    )
    python_headers: bool = Field(False, description="Whether Python.h must be installed.")
    cpu_isa: Literal["avx2", "avx512", "avx512_bf16", "amx"] | None = Field(
        None, description="The least instruction set of the processor."
    )
    cpu_ranks: int | None = Field(
        None, ge=1, description="CPU workers among which the cores are divided (`env`)."
    )
    cores_per_rank: int | None = Field(
        None,
        ge=1,
        description="Cores for each of them at most; all there are if null. A tiny "
        "model is served best by one: more wait for each other, long on a busy machine.",
    )
    host: str = Field("127.0.0.1", description="Address the server will listen on.")
    port: int | None = Field(
        None, ge=1, le=65535, description="A port that must be free, or our own server's."
    )
    variant: Literal["auto", "v4", "v3"] = Field(
        "auto", description="Which rehearsal checkpoint to use; `auto` lets the processor decide."
    )
    draft: Literal["mtp", "dspark"] = Field(
        "mtp", description="The draft of that checkpoint; only v4 has one of DSpark."
    )
    service: str = Field(
        "serve", description="Folder of our own server in the workspace, which is no stranger."
    )

    @field_validator("checks", "skip")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in CHECKS:
                raise ValueError(f"no check is called {name!r}; there are {', '.join(CHECKS)}")
        return names


class Outputs(Strict):
    """What later steps take from this machine."""

    variant: Literal["v4", "v3"] = Field(
        description="Which rehearsal checkpoint this processor can serve."
    )
    reduced: bool = Field(description="Whether that is less than the whole rehearsal.")
    cpu_isa: str = Field(description="The richest instruction set of the processor.")
    hardware: str | None = Field(None, description="Which of the alternatives this machine is.")
    values: dict[str, Any] = Field(
        default_factory=dict, description="What that alternative gives to later steps."
    )
    gpus: list[dict[str, Any]] = Field(description="The GPUs that fulfil the conditions.")
    env: dict[str, str] = Field(
        description="Environment for the server that this machine needs: which GPUs, how they "
        "may talk, which cores each CPU worker has."
    )
