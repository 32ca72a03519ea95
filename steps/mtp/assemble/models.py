"""Inputs and outputs of the step `mtp-assemble`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    base: str = Field(description="Folder of the quantised checkpoint that lacks the block.")
    upstream: str = Field(description="Folder of the upstream checkpoint, which has it.")
    quantised: str = Field(description="Folder that mtp-quantise made.")
    target: str = Field(
        description="The vLLM release that will load the checkpoint: 0.33.0, 0.32.0-cpu, or the "
        "commit abad5dc71 of the fork jasl/vllm.",
        min_length=1,
    )
    series: str = Field(
        default="",
        description="The patch series that the release has: one of the step vllm by name, or the "
        "path of one's own. Empty: the stock release.",
    )
    destination: str = Field(default="assembled", description="Folder inside the workspace.")


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="Folder of the checkpoint with its block.")
    findings: int = Field(description="Findings of severity error or warning that are left.")
