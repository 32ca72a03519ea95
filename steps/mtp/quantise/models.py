"""Inputs and outputs of the step `mtp-quantise`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    python: str = Field(description="Interpreter of an environment with torch and safetensors.")
    checkpoint: str = Field(description="Folder of the upstream checkpoint, which has the block.")
    calibration: str = Field(
        default="",
        description="Folder of what was captured of the block's experts: calibration.json and "
        "tokens-*.safetensors or moments-*.safetensors. Without one, all are rounded to nearest.",
    )
    prefix: str = Field(default="mtp.0.ffn.experts", description="Name of the routed experts.")
    destination: str = Field(default="quantised", description="Folder inside the workspace.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to compute.")
    order: Literal["static", "none"] = Field(
        default="static", description="Visit columns by their importance, or as they are stored."
    )
    damping: float = Field(
        default=0.05, ge=0, le=10, description="Share of the mean second moment that is added."
    )
    shrink: bool = Field(
        default=True, description="Shrink the second moments of experts with few tokens."
    )
    scale: Literal["weighted", "mse", "absmax"] = Field(
        default="weighted", description="How the scale of a group is chosen."
    )
    signed: bool = Field(
        default=False,
        description="Allow negative scales: more accurate, but not every kernel reads them.",
    )
    threshold: int = Field(
        default=-1, ge=-1, description="Fewest tokens for GPTQ; -1: hidden size / 64."
    )
    unrouted: Literal["error", "nearest"] = Field(
        default="error",
        description="What to do if no captured token was routed to an expert: fail, or round it to "
        "nearest and record it. Experts with a few, below the threshold, are always rounded.",
    )
    batch: int = Field(default=0, ge=0, description="Experts at once; 0: 16 on a GPU, 1 on a CPU.")


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="Folder of the quantised experts and their manifest.")
    tensors: int = Field(description="How many weights were quantised.")
    error: float | None = Field(description="Relative output error on held-out tokens.")
    error_rtn: float | None = Field(description="The same for rounding to nearest.")
    rounded_to_nearest: int = Field(description="Weights without enough tokens for GPTQ.")
