"""Inputs and outputs of `uses: publish`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runbook.steps.common.models import Process, Strict

REPO = r"^[A-Za-z0-9][\w.-]*/[\w.-]+$"


class Inputs(Strict):
    variant: Literal["v3", "v4"] = Field(
        description="Which architecture to write: v4 needs a processor with avx512_bf16"
    )
    tensor_parallel: int = Field(
        default=1, ge=1, le=2, description="Number of ranks that the shapes must divide by"
    )
    draft: Literal["mtp", "dspark"] = Field(
        default="mtp",
        description="The draft it has: an MTP head beside experts in INT4, or, of v4 alone, a "
        "DSpark draft beside experts in MXFP4, as DeepSeek-V4-Flash-0731 is released",
    )
    repo: str = Field(
        default="runbook/tiny-deepseek-v4-w4a16-fp8",
        pattern=REPO,
        description="Name under which the local hub serves the checkpoint, `owner/name`",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of the local hub; 0 takes a free one and keeps it over restarts",
    )


class Outputs(Strict):
    hub_endpoint: str = Field(description="URL of the local hub, for HF_ENDPOINT")
    repo: str = Field(description="`owner/name` of the repository that it serves")
    revision: str = Field(description="Commit hash, 40 hex digits, derived from the content")
    variant: Literal["v3", "v4"] = Field(description="Architecture of the checkpoint")
    process: Process = Field(description="The server")
