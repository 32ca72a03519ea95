"""Inputs and outputs of the toolkit step."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    provider: Literal["conda", "pypi"] = Field(
        "conda",
        description="where the toolkit comes from: `conda` installs the packages of a conda lock "
        "and brings its own gcc, cmake and ninja; `pypi` installs NVIDIA's wheels and uses the "
        "machine's gcc",
    )
    lock: str | None = Field(
        None,
        description="path of another lock than the shipped one: a conda-lock file (v1, linux-64) "
        "for `conda`, hash-pinned requirements for `pypi`",
    )
    channel_alias: str | None = Field(
        None,
        pattern=r"^(https?|file)://[^@\s]+$",
        description="base URL of a mirror that replaces the channel's in the lock's URLs "
        "(`<alias>/<channel>/<subdir>/<file>`); `conda` only",
    )
    components: Literal["compiler", "build"] = Field(
        "build",
        description="how much of the toolkit `pypi` installs: `compiler` is nvcc and what it "
        "needs (0.1 GB), `build` is all that a vLLM source build and run-time compilation need "
        "(1.3 GB)",
    )
    architecture: Annotated[str, Field(pattern=r"^\d{1,2}\.\d[af]?$")] = Field(
        "12.0",
        description="compute capability for which the toolkit must prove that it compiles, in "
        "the notation of TORCH_CUDA_ARCH_LIST",
    )
    gcc_minimum: int = Field(
        9,
        ge=7,
        description="oldest major version of the machine's gcc to accept (vLLM 0.33 wants 13 for "
        "a source build); the newest is what nvcc accepts; `pypi` only",
    )
    prefix: str = Field("toolkit", description="folder of the toolkit inside the workspace")

    @field_validator("prefix")
    @classmethod
    def inside_the_workspace(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError("must be a relative path inside the workspace, without `..`")
        return str(path)


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    provider: Literal["conda", "pypi"] = Field(description="where the toolkit came from")
    cuda_home: str = Field(description="absolute path to use as CUDA_HOME")
    nvcc: str = Field(description="absolute path of nvcc")
    nvcc_version: str = Field(description="release and build of nvcc, such as 13.0.88")
    ptxas: str = Field(description="absolute path of ptxas")
    cc: str = Field(description="absolute path of the host C compiler")
    cxx: str = Field(description="absolute path of the host C++ compiler")
    gcc_version: str = Field(description="version of the host compiler")
    env: dict[str, str] = Field(
        description="environment variables to set for a build and at run time (PATH is not among "
        "them: see `path`)"
    )
    path: list[str] = Field(description="folders to put before PATH, in this order")
