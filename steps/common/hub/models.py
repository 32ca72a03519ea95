"""Inputs of every step with files of a hub."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
# Without a login: what a book says is recorded. One for the hub may stand in HF_ENDPOINT.
URL = r"^https?://[^/@\s]+(/[^@\s]*)?$"


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
        description="Commit hash; a branch or tag is resolved once, and the book's lock then "
        "has it (`runbook lock`)",
    )
    files: Files = Field(default=Files(), description="Which files are wanted")
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default={},
        description="SHA-256 that some files must have, by their path: what the book was made for, "
        "whatever the hub says",
    )
    destination: str | None = Field(
        default=None, description="Folder; by default `weights/<name>` in the workspace"
    )
    endpoint: str | None = Field(
        default=None,
        pattern=URL,
        description="URL of the hub, without a login; by default HF_ENDPOINT, else the public hub",
    )
    mirrors: list[Annotated[str, Field(pattern=URL)]] = Field(
        default=[],
        description="URLs of servers with the same repository, tried in order where the hub gives "
        "no bytes. What the bytes are only the hub says; the token is not sent to them",
    )
    workers: int = Field(default=8, ge=1, le=64, description="Connections at once")
    bandwidth: ByteSize | None = Field(
        default=None, description="Bytes per second at most, all connections together: `50MB`"
    )
    patience: float = Field(
        default=900,
        gt=0,
        description="Seconds in which at least 1 kB/s must be new, else the step gives up; "
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
