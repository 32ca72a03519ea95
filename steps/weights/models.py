"""Inputs and outputs of `uses: weights`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from runbook.steps.common.hub.models import Inputs as Download


class Inputs(Download):
    model_config = ConfigDict(extra="forbid")


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="Folder with the files")
    repo: str = Field(description="`owner/name`")
    revision: str = Field(description="Commit hash, 40 hex digits")
    bytes: int = Field(description="Size of all files")
    files: int = Field(description="Number of files")
