"""Models of the flags of `vllm serve`, by the names that vLLM gives them, and of profiles."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from runbook.steps.common.flags import profiles
from runbook.steps.common.models import Strict

SHA256 = r"^[0-9a-f]{64}$"

KEYS = {
    "--api-key": "write the key into a file and name it as `api_key_file`",
    "--hf-token": "log in by `hf auth login`",
}
"""Options of `vllm serve` that take a secret, and what to do instead."""
VARIABLES = {
    "VLLM_API_KEY": "--api-key",
    "HF_TOKEN": "--hf-token",
    "HUGGING_FACE_HUB_TOKEN": "--hf-token",
}
"""Variables that do the same."""


class SpeculativeConfig(BaseModel):
    """vLLM's speculative decoding. Other keys that vLLM knows are passed on as they are."""

    model_config = ConfigDict(extra="allow")
    method: str = Field(description="Speculation method; `mtp` uses the model's own MTP head.")
    num_speculative_tokens: int = Field(1, ge=1, description="Tokens drafted per step.")


class Flags(Strict):
    """Flags of `vllm serve`; null leaves one to vLLM."""

    tensor_parallel_size: int | None = Field(
        None, ge=1, description="GPUs, or CPU workers, per replica."
    )
    data_parallel_size: int | None = Field(None, ge=1, description="Replicas.")
    enable_expert_parallel: bool | None = Field(
        None, description="Spread whole experts over the ranks in place of slices of each."
    )
    max_model_len: int | None = Field(None, ge=1, description="Context length in tokens.")
    max_num_seqs: int | None = Field(None, ge=1, description="Sequences decoded together at most.")
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="Tokens in one step at most; the size of a prefill chunk."
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of a GPU's memory that vLLM may take."
    )
    kv_cache_dtype: str | None = Field(None, description="Data type of the KV cache, as `fp8`.")
    kv_cache_memory_bytes: int | None = Field(
        None, ge=1, description="Size of the KV cache; on a CPU the default is all memory there is."
    )
    block_size: int | None = Field(None, ge=1, description="Tokens in a block of the KV cache.")
    tokenizer_mode: str | None = Field(None, description="As `deepseek_v4`.")
    reasoning_parser: str | None = Field(None, description="Parser that splits off the reasoning.")
    tool_call_parser: str | None = Field(None, description="Parser that finds tool calls.")
    enable_auto_tool_choice: bool | None = Field(
        None, description="Let the model decide whether to call a tool."
    )
    trust_remote_code: bool | None = Field(
        None,
        description="Run Python code of the model folder: only what `trusted_code` names.",
    )
    disable_custom_all_reduce: bool | None = Field(
        None, description="Needed for two GPUs that only PCIe connects: else the start hangs."
    )
    enforce_eager: bool | None = Field(None, description="No compilation and no CUDA graphs.")
    enable_prefix_caching: bool | None = Field(None, description="Reuse the KV cache of prefixes.")
    seed: int | None = Field(None, description="Seed of sampling.")
    speculative_config: SpeculativeConfig | None = Field(
        None, description="Speculative decoding; off if null."
    )
    compilation_config: dict[str, Any] | None = Field(
        None, description="Compilation and CUDA graphs, as vLLM's --compilation-config."
    )
    extra_args: list[str] = Field(
        default_factory=list, description="Further arguments of `vllm serve`, as they are."
    )

    env: list[dict[str, str]] = Field(
        default_factory=list,
        description="Environment in layers, later ones over earlier ones, over that of the run.",
    )

    @field_validator("extra_args")
    @classmethod
    def _no_key_in_arguments(cls, given: list[str]) -> list[str]:
        for argument, following in zip(given, [*given, "-"][1:], strict=True):
            name, stated, _ = argument.replace("_", "-").partition("=")
            for option, instead in KEYS.items():
                # The parser takes beginnings of names; a bare --hf-token means the login.
                if option.startswith(name) and name.strip("-") and (stated or following[:1] != "-"):
                    raise ValueError(f"all users of the machine can read arguments: {instead}")
        return given

    @field_validator("env")
    @classmethod
    def _no_key_in_records(cls, given: list[dict[str, str]]) -> list[dict[str, str]]:
        for variable, option in VARIABLES.items():
            if any(variable in layer for layer in given):
                raise ValueError(f"the environment is recorded: {KEYS[option]}")
        return given


class Figure(Strict):
    """What a profile reaches, and where that is known from."""

    value: float = Field(description="The number.")
    unit: Literal["tokens/s", "seconds to the first token"] = Field(
        description="Of all streams together; per request."
    )
    streams: int = Field(1, ge=1, description="Requests side by side.")
    kind: Literal["measured", "reported", "estimated"] = Field(
        description="By a run of this book, by others, or by reckoning."
    )
    source: str = Field(description="Who says so, where.")
    cards: str = Field(description="The GPUs that it holds for.")
    power_watts: int | None = Field(None, ge=1, description="Their power limit.")


Choices = dict[str, Annotated[list[Any], Field(min_length=1)]]


class Profile(Flags):
    """A named set of flags."""

    figures: list[Figure] = Field(
        default_factory=list, description="What it reaches, each with its provenance."
    )
    choices: Choices = Field(
        default_factory=dict, description="What `runbook tune` tries with it, over the step's."
    )


class ProfileFile(Profile):
    """A profile in a file of its own."""

    evidence: dict[str, Any] = Field(
        default_factory=dict, description="What was measured of it and of the others, where."
    )


class Served(Flags):
    """Flags, and profiles of which one goes over them."""

    flags: Flags | None = Field(
        None,
        description="Flags that steps share: those given beside go over them; `env` and "
        "`extra_args` are added to them. One YAML anchor here serves every step that starts this "
        "server.",
    )
    profile: str | None = Field(
        None,
        description="The profile to serve with, by name; `auto` is the one that fits `users` and "
        "`context`.",
    )
    users: int = Field(1, ge=1, description="Requests side by side, for the profile `auto`.")
    context: int = Field(1, ge=1, description="Tokens of each at most, for the profile `auto`.")
    profiles: dict[str, Profile] = Field(
        default_factory=dict,
        description="Named sets of flags. What a profile gives goes over the flags beside it; its "
        "`env` and `extra_args` are added to them.",
    )
    profile_file: str | None = Field(
        None,
        description="Path of a profile in a file of its own, as `runbook tune` writes it: what it "
        "gives goes over the profile's flags.",
    )
    choices: Choices = Field(
        default_factory=dict,
        description="What `runbook tune` tries: {flag: values}. A part of an object is named "
        "`speculative_config.num_speculative_tokens`, a variable `env.NAME`; each value of "
        "`extra_args` is a list of arguments.",
    )

    @model_validator(mode="after")
    def _profile_known(self) -> Served:
        if self.profile == profiles.AUTO:
            given = {name: vars(told) for name, told in self.profiles.items()}
            profiles.choose(given, self.users, self.context)
        elif self.profile is not None and self.profile not in self.profiles:
            names = ", ".join(self.profiles) or "none"
            raise ValueError(f"no profile is called {self.profile!r}; there are: {names}")
        return self
