"""Inputs and outputs of the step `kernels`."""

from __future__ import annotations

from pydantic import Field, model_validator

from runbook.steps.common.flags.models import Served
from runbook.steps.common.models import Strict


class Inputs(Served):
    """A start of the server with few layers of random weights."""

    vllm: str = Field(description="Path of the `vllm` program.")
    build: str = Field(min_length=1, description="The wheel's digest: names the kernels' folder.")
    repo: str | None = Field(None, description="Repository on the hub, `owner/name`.")
    revision: str = Field("main", description="Its commit or branch.")
    source: str | None = Field(None, description="A folder with the model's small files instead.")
    layers: int | None = Field(
        None, ge=1, description="Layers; null takes the fewest that hold each kind of layer."
    )
    port: int = Field(8010, ge=1, le=65535, description="Port of the server while it compiles.")
    path: list[str] = Field(default_factory=list, description="Folders put before PATH.")
    precompiled: bool = Field(
        False,
        description="Whether `vllm download-kernels` installs FlashInfer's precompiled kernels "
        "first, from FlashInfer's own index, which no lock pins; what came is recorded by digest.",
    )
    start_timeout: float = Field(3600, gt=0, description="Seconds until it answers, at most.")
    gpu_used_mib: int = Field(
        2000, ge=0, description="Memory of a GPU in use above which it counts as busy."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Inputs:
        if (self.repo is None) == (self.source is None):
            raise ValueError("give either repo or source")
        return self


class Outputs(Strict):
    """What became of it."""

    compiled: bool = Field(description="Whether a server answered with these flags.")
    seconds: float | None = Field(description="How long that took.")
    precompiled: dict[str, str] = Field(
        default_factory=dict,
        description="Packages of precompiled kernels, `name==version`, with the SHA-256 of RECORD.",
    )
    phases: dict[str, float] = Field(description="Seconds of each phase of the start.")
