"""Models that inputs and outputs of several kinds of step share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Refuses fields that it does not name."""

    model_config = ConfigDict(extra="forbid")


class Process(Strict):
    """A process by pid, start time and boot: unique over reboots and recycled pids."""

    pid: int = Field(description="Process id.")
    start_time: int = Field(description="Start in clock ticks after boot.")
    boot_id: str = Field(description="The kernel's id of this boot.")


class Reference(Strict):
    """What one stream of a server reached elsewhere, null where that is not known."""

    tokens_per_second: float | None = Field(description="Its rate of decoding.")
    ttft_seconds: float | None = Field(description="Seconds to its first token.")
    source: str = Field(description="Who says so, where.")
