"""Inputs and outputs of the build step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mode: Literal["wheel", "source"] = Field(
        "wheel",
        description="`wheel`: patch the published wheel. `source`: compile the pinned source.",
    )
    target: str = Field(
        description="The patch series: a folder of steps/vllm/patches, or the path of one's own.",
        min_length=1,
    )
    lock: str | None = Field(
        None,
        description="The locked release: a file name in env/, or a path. "
        "Default: vllm-<target>.lock.json.",
    )
    python: str | None = Field(
        None,
        description="Minor version of Python of the environment, such as 3.11. Default: this one "
        "if the lock has it, else the first that it has.",
        pattern=r"^3\.\d+$",
    )
    source: Source | None = Field(None, description="What to compile, for `mode: source`.")

    @model_validator(mode="after")
    def _source_given(self) -> Inputs:
        if (self.mode == "source") != (self.source is not None):
            raise ValueError("`source` goes with `mode: source`, and only with it")
        return self


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")

    repository: str = Field(description="Address of the git repository, recorded as provenance.")
    commit: str = Field(
        description="The full commit hash; branches move.", pattern=r"^[0-9a-f]{40}$"
    )
    archive: str = Field(
        description="Where its source archive (tar) is: an http(s) address, which may hold "
        "{commit}, or a path."
    )
    archive_sha256: Sha256 = Field(description="SHA-256 of that archive.")
    version: str = Field(description="The public version that the build gets, such as 0.22.1.")
    jobs: int | None = Field(
        None,
        ge=1,
        description="Compiler processes (MAX_JOBS). Default: from free memory, "
        "max(1, min(cores, (available GB - 4) / 8)).",
    )
    arch_list: str | None = Field(None, description="TORCH_CUDA_ARCH_LIST, such as 12.0.")
    cuda_home: str | None = Field(None, description="CUDA_HOME, from the toolkit step.")
    cuda_version: str | None = Field(
        None, description="Version of nvcc, from the toolkit step: another one is another build."
    )
    path: list[str] = Field(
        default_factory=list, description="Folders that lead PATH in the build."
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of the build."
    )


class Outputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wheel: str = Field(description="Path of the patched wheel.")
    wheel_sha256: Sha256 = Field(description="SHA-256 of the patched wheel.")
    python: str = Field(description="Path of the environment's interpreter.")
    vllm: str = Field(description="Path of the environment's `vllm` program.")
    vllm_version: str = Field(description="Version of the patched build, with its local part.")
    environment_variables: list[str] = Field(
        description="The environment variables named VLLM_* that this vLLM knows, sorted."
    )
    patch_digest: Sha256 = Field(description="Digest of the patch series that was applied.")


Inputs.model_rebuild()
