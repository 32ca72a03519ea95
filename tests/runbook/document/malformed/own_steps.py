"""Steps of a user's own, for the documents in this folder."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from runbook.protocol import Check, Context


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class Limits(BaseModel):
    model_config = ConfigDict(extra="forbid")
    memory: int = 1
    parts: list[Part] = []


class Process(BaseModel):
    pid: int


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")
    level: Literal["low", "high"]
    jobs: int = Field(default=1, ge=1)
    revision: str = "0" * 40
    first: int = 0
    last: int = 9
    limits: Limits = Limits()

    @field_validator("revision")
    @classmethod
    def whole(cls, revision: str) -> str:
        if len(revision) != 40:
            raise ValueError("a revision is 40 hexadecimal digits, not a branch")
        return revision

    @model_validator(mode="after")
    def ordered(self) -> "Inputs":
        if self.first > self.last:
            raise ValueError("`first` comes after `last`")
        return self


class Outputs(BaseModel):
    path: str
    process: Process


class Convert:
    version = "1"
    Inputs = Inputs
    Outputs = Outputs

    def check(self, ctx: Context) -> Check:
        return Check.satisfied({"path": str(ctx.workspace), "process": {"pid": 1}})

    def apply(self, ctx: Context) -> None:
        ctx.log(ctx.inputs.level)


class NotAStep:
    version = "1"
