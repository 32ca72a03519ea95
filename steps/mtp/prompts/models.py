"""Inputs and outputs of the step `mtp-prompts`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from runbook.steps.common.hub.models import REPO
from runbook.steps.common.hub.models import Inputs as Download


class Inputs(Download):
    repo: str = Field(pattern=REPO, description="Dataset repository, `owner/name`")
    destination: str | None = Field(
        default=None, description="Folder; by default `datasets/<name>` in the workspace"
    )
    column: str = Field(
        default="",
        description="Where a row has its conversation, as text or messages; by default `messages`, "
        "else `prompt`",
    )
    count: int = Field(default=256, ge=1, description="How many conversations are drawn")
    seed: int = Field(default=0, description="Draws the conversations")


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="File of the prompts, as JSON with messages, one a line")
    count: int = Field(description="How many prompts there are")
    revision: str = Field(description="Commit hash of the dataset, 40 hex digits")
