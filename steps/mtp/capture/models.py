"""Inputs and outputs of the step `mtp-capture`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    vllm: str = Field(description="The `vllm` program of the environment that serves the model.")
    build: str = Field(
        default="", description="Digest of its wheel, which names the folder of compiled kernels."
    )
    model: str = Field(description="Folder of a model with an MTP block.")
    prompts: str = Field(
        description="File of calibration prompts: a text, or a JSON object with prompt or "
        "messages, a line."
    )
    record: Literal["moments", "tokens"] = Field(
        default="moments",
        description="moments: the second moments of each expert's inputs, computed while the "
        "server answers (for 256 experts of DeepSeek-V4-Flash 17 GB of host memory, 12 GB of "
        "disk). tokens: every token as it is (8 KB each).",
    )
    checkpoint: str = Field(
        default="",
        description="Folder of the upstream checkpoint, whose experts give the inputs of the down "
        "projections: the one that mtp-quantise will quantise. Needed for moments.",
    )
    prefix: str = Field(
        default="mtp.0.ffn.experts", description="Name of the routed experts in the checkpoint."
    )
    count: int = Field(default=256, ge=1, description="How many prompts, drawn with the seed.")
    max_tokens: int = Field(default=256, ge=1, description="Tokens of each answer at most.")
    seed: int = Field(default=0, description="Draws the prompts.")
    concurrency: int = Field(default=4, ge=1, description="Prompts asked at a time.")
    port: int = Field(default=8190, ge=1, le=65535, description="Port of the server.")
    arguments: list[str] = Field(
        default_factory=list, description="More arguments for `vllm serve`."
    )
    trusted_code: list[str] = Field(
        default_factory=list,
        description="SHA-256 of each file of Python beside the weights that `--trust-remote-code` "
        "may run.",
    )
    env: list[dict[str, str]] = Field(
        default_factory=list,
        description="Environment in layers, later ones over earlier ones, over that of the run.",
    )
    path: list[str] = Field(default_factory=list, description="Folders to put before PATH.")
    answer_timeout: float = Field(default=1800, gt=0, description="Seconds for one answer.")
    destination: str = Field(default="captures", description="Folder inside the workspace.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.record == "moments" and not self.checkpoint:
            raise ValueError("record: moments needs a checkpoint")
        return self


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="Folder of the captures.")
    tokens: int = Field(description="How many tokens passed through the block.")
