"""Inputs and outputs of `uses: weights`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
URL = r"^https?://[^/\s]+"


class Files(BaseModel):
    """Which files of the repository are wanted, by shell patterns over their whole path."""

    model_config = ConfigDict(extra="forbid")

    allow: list[str] = Field(default=[], description="Only files that match one; empty: all")
    ignore: list[str] = Field(default=[], description="Not those that match one")


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    repo: str = Field(pattern=REPO, description="Model repository, `owner/name`")
    revision: str = Field(
        default="main",
        min_length=1,
        description="Commit hash; a branch or tag is resolved once and then kept",
    )
    files: Files = Field(default=Files(), description="Which files are wanted")
    destination: str | None = Field(
        default=None, description="Folder; by default `weights/<name>` in the workspace"
    )
    endpoint: str | None = Field(
        default=None,
        pattern=URL,
        description="URL of the hub; by default HF_ENDPOINT, else the public hub",
    )
    mirrors: list[str] = Field(
        default=[],
        description="URLs of further hubs with the same repository, tried in order. "
        "The token is not sent to them",
    )
    workers: int = Field(default=8, ge=1, le=64, description="Connections at once")
    bandwidth: ByteSize | None = Field(
        default=None, description="Bytes per second at most, all connections together: `50MB`"
    )
    patience: float = Field(
        default=900,
        gt=0,
        description="Seconds without one more byte after which the step gives up; "
        "a longer Retry-After of the server ends it at once",
    )
    verify: Literal["size", "sha256"] = Field(
        default="sha256",
        description="What is proven of each file: its size, or all bytes by the hub's digest",
    )
    link: Literal["hardlink", "reflink", "symlink", "none"] = Field(
        default="hardlink",
        description="How a file of the Hugging Face cache is reused: hardlink falls back to "
        "reflink, both to a download; none ignores the cache",
    )


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="Folder with the files")
    repo: str = Field(description="`owner/name`")
    revision: str = Field(description="Commit hash, 40 hex digits")
    bytes: int = Field(description="Size of all files")
    files: int = Field(description="Number of files")
