"""Inputs and outputs of the step `mtp`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="Folder of the downloaded checkpoint; it is never changed.")
    destination: str = Field(
        default="",
        description="Folder to make, which is then served; `model` in the workspace if empty.",
    )
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
    require_head: bool = Field(
        default=True, description="Fail if the checkpoint has no complete MTP block."
    )
    mend: Literal["auto", "none"] = Field(
        default="auto",
        description="auto mends what can be mended, in new files; none only checks and links.",
    )
    aliases: bool = Field(
        default=False,
        description="Give the MTP block its own copies of embedding and head, which vLLM needs "
        "with pipeline parallelism.",
    )


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The folder to serve.")
    findings: int = Field(description="Findings of severity error or warning that are left.")
    head: bool = Field(description="Whether there is a complete MTP block.")
    mended: list[str] = Field(description="The ids of what was mended.")
    code: dict[str, str] = Field(
        default_factory=dict,
        description="SHA-256 of each file of Python in the folder, by its path: what "
        "`trusted_code` of the step `serve` must name before trust_remote_code runs it.",
    )
