"""Inputs and outputs of the build step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from runbook.protocol import StepFailure
from runbook.steps.vllm.known import require

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mode: Literal["wheel", "source"] = Field(
        "wheel",
        description="`wheel`: the published wheel. `source`: compile the pinned source.",
    )
    target: str = Field(
        description="The vLLM release, such as 0.33.0 or 0.32.0-cpu.", pattern=r"^[^/\x00]+$"
    )
    series: str = Field(
        "",
        description="The patch series to apply: a folder of steps/vllm/patches by name, or the "
        "path of one's own. Empty: the stock release, as it is published.",
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

    @model_validator(mode="after")
    def _there(self) -> Inputs:
        """A release or series that does not exist is known before any step has run. What is of
        wrong form is the step's own to tell, with its remedy."""
        try:
            require(self.target, self.series, self.lock)
        except StepFailure as failure:
            if failure.code not in ("lock_missing", "series_missing", "release_not_supported"):
                return self
            said = f"{failure.message}; {failure.cause}" if failure.cause else failure.message
            raise ValueError(said) from failure
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

    wheel: str = Field(description="Path of the wheel that was installed.")
    wheel_sha256: Sha256 = Field(description="SHA-256 of that wheel.")
    python: str = Field(description="Path of the environment's interpreter.")
    vllm: str = Field(description="Path of the environment's `vllm` program.")
    vllm_version: str = Field(description="Its version; that of a patched build has a local part.")
    environment_variables: list[str] = Field(
        description="The environment variables named VLLM_* that this vLLM knows, sorted."
    )
    patch_digest: Sha256 = Field(
        description="Digest of the patch series that was applied; of a stock release, of nothing."
    )


Inputs.model_rebuild()
