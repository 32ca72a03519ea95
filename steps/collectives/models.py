"""Inputs and outputs of the step `collectives`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Inputs(BaseModel):
    """What is probed, and with what."""

    model_config = ConfigDict(extra="forbid")
    python: str = Field(description="The interpreter of the environment that will serve.")
    build: str = Field("", description="What identifies that environment; a change probes anew.")
    ranks: int = Field(ge=1, description="GPUs, or CPU workers, that reduce together.")
    backend: Literal["nccl", "gloo"] = Field("nccl", description="gloo is for CPU workers.")
    env: list[dict[str, str]] = Field(
        default_factory=list, description="Environment of the server, in layers, without paths."
    )
    pcie_ipc: bool = Field(
        True, description="Whether FlashInfer's all-reduce over PCIe is tried, without NVLink."
    )
    path: list[str] = Field(
        default_factory=list,
        description="Folders put before PATH: what is compiled at run time needs nvcc.",
    )
    sizes: list[int] = Field(
        default_factory=lambda: [4096, 65536, 1 << 20, 32 << 20],
        min_length=1,
        description="Bytes of the reduced tensors. A decode step reduces some 8 KiB a sequence, "
        "a prompt much more: the geometric mean of the times of all decides.",
    )
    deadline: float = Field(90, gt=0, description="Seconds for one variant, its imports included.")


class Outputs(BaseModel):
    """What was found."""

    model_config = ConfigDict(extra="forbid")
    env: dict[str, str] = Field(description="Environment of the fastest variant that is right.")
    fastest: str | None = Field(description="Its name; null if nothing was to be probed.")
    custom_all_reduce: str | None = Field(
        description="The verdict on vLLM's custom all-reduce; null if it was not probed."
    )
    pcie_ipc_all_reduce: str | None = Field(
        None, description="That on FlashInfer's all-reduce over PCIe."
    )
    table: list[dict[str, Any]] = Field(
        description="Each variant with its verdict, and of each size seconds and GB/s."
    )
