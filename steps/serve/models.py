"""Inputs and outputs of the serve step. Flags of `vllm serve` keep the names vLLM gives them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from runbook.steps.serve import profiles


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Process(Strict):
    """A process by pid, start time and boot: unique over reboots and recycled pids."""

    pid: int = Field(description="Process id.")
    start_time: int = Field(description="Start in clock ticks after boot.")
    boot_id: str = Field(description="The kernel's id of this boot.")


class SpeculativeConfig(BaseModel):
    """vLLM's speculative decoding. Other keys that vLLM knows are passed on as they are."""

    model_config = ConfigDict(extra="allow")
    method: str = Field(description="Speculation method; `mtp` uses the model's own MTP head.")
    num_speculative_tokens: int = Field(1, ge=1, description="Tokens drafted per step.")


class WarmUp(Strict):
    """The first completion, which must succeed before the server counts as ready."""

    prompt: str = Field("Count from one to ten.", description="What is asked.")
    max_tokens: int = Field(16, ge=2, description="Tokens generated at most.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed on to the chat template."
    )


class Drafts(Strict):
    """How the draft head is judged, from the server's counters of drafted and accepted tokens."""

    min_acceptance: float | None = Field(
        None, ge=0, le=1, description="The least share accepted; null judges nothing."
    )
    least_tokens: int = Field(
        256, ge=1, description="Drafted tokens before it is judged; the first request is repeated."
    )
    chance: bool = Field(
        False,
        description="The head's weights are random, as in a synthetic checkpoint: its drafts are "
        "accepted by chance, and it is not judged.",
    )


class Release(Strict):
    """The vLLM that serves, for the rules that depend on it."""

    version: str | None = Field(None, description="Its version, as `0.33.0`.")
    variables: list[str] | None = Field(
        None, description="The VLLM_* variables that it knows; any other is a finding."
    )


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
        None, description="Run Python code that the model folder brings along."
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
        if any(argument.partition("=")[0] == "--api-key" for argument in given):
            raise ValueError(
                "all users of the machine can read arguments: write the key into a file and name "
                "it as `api_key_file`"
            )
        return given

    @field_validator("env")
    @classmethod
    def _no_key_in_records(cls, given: list[dict[str, str]]) -> list[dict[str, str]]:
        if any("VLLM_API_KEY" in layer for layer in given):
            raise ValueError(
                "the environment is recorded: write the key into a file and name it as "
                "`api_key_file`"
            )
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


class Profile(Flags):
    """A named set of flags."""

    figures: list[Figure] = Field(
        default_factory=list, description="What it reaches, each with its provenance."
    )


class Inputs(Flags):
    """What is served, how, and where."""

    vllm: str = Field(description="Path of the `vllm` program.")
    model: str = Field(description="Folder of the model to serve.")
    served_model_name: str = Field(description="The name that clients ask for.")
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. On any but this machine's own a key is required.",
    )
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    api_key_file: str | None = Field(
        None,
        description="File of the API key, readable by its owner only. If null, one is generated "
        "where a key is required.",
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
    path: list[str] = Field(default_factory=list, description="Folders put before PATH.")
    digests: dict[str, Any] = Field(
        default_factory=dict,
        description="What identifies the model and the build; a change restarts the server. "
        "`build`, the wheel's digest, names the folder of its compiled kernels too.",
    )

    release: Release = Field(
        default_factory=lambda: Release.model_validate({}), description="The vLLM that serves."
    )
    proof: list[str] = Field(
        default_factory=list,
        description="Words that the log of a start must have, as the name of the kernels' backend; "
        "a start without them is a finding.",
    )
    override: list[str] = Field(
        default_factory=list, description="Rules, by id, that are only to warn (`rules.yaml`)."
    )

    warm_up: WarmUp = Field(
        default_factory=lambda: WarmUp.model_validate({}), description="The first completion."
    )
    drafts: Drafts = Field(
        default_factory=lambda: Drafts.model_validate({}), description="How the drafts are judged."
    )
    start_timeout: float = Field(
        3600,
        gt=0,
        description="Seconds until the first completion has succeeded, at most. A first start "
        "compiles kernels for minutes; a start that hangs is ended long before.",
    )
    near_limit: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the context length of a request that must be answered before the "
        "server counts as ready: some servers die of their first long prompt. 0 asks none; null "
        "is 0.9 on GPUs, else 0.",
    )
    rollback: bool = Field(
        True,
        description="If a server with other settings does not become ready, start the one again "
        "that served before.",
    )
    stop_grace: float = Field(
        30, ge=0, description="Seconds from SIGINT until the server is killed."
    )
    supervisor: Literal["auto", "session", "systemd-user"] = Field(
        "auto",
        description="What keeps the server: a session of its own; the user's systemd, which also "
        "starts it again after a crash or a reboot; or `auto`, systemd where it can be reached and "
        "the user's services outlive a log-out (`loginctl enable-linger`).",
    )

    @model_validator(mode="after")
    def _profile_known(self) -> Inputs:
        if self.profile == profiles.AUTO:
            given = {name: vars(told) for name, told in self.profiles.items()}
            profiles.choose(given, self.users, self.context)
        elif self.profile is not None and self.profile not in self.profiles:
            names = ", ".join(self.profiles) or "none"
            raise ValueError(f"no profile is called {self.profile!r}; there are: {names}")
        return self

    @field_validator("override")
    @classmethod
    def _rules_known(cls, names: list[str]) -> list[str]:
        if names:
            from runbook.steps.serve.rules import rules

            known = {rule.id for rule in rules()}
            for name in names:
                if name not in known:
                    raise ValueError(f"no rule is called {name!r}")
        return names


class Outputs(Strict):
    """The running server."""

    endpoint: str = Field(description="Base URL of the OpenAI API.")
    model: str = Field(description="The name that clients ask for.")
    profile: str | None = Field(description="The profile it is served with.")
    profile_reason: str | None = Field(None, description="Why that one, if it was chosen.")
    log: str = Field(description="Path of the server's log.")
    process: Process = Field(description="The server's process.")
    supervisor: str = Field(description="What keeps it: `session` or `systemd-user`.")
    kv_cache_tokens: int | None = Field(description="Tokens that fit into the KV cache.")
    max_concurrency: float | None = Field(
        description="Requests of full context length that fit into the KV cache."
    )
    api_key_file: str | None = Field(None, description="File of the API key; null: none is asked.")
    near_limit_tokens: int | None = Field(
        None, description="Tokens of the longest prompt that was answered while it started."
    )
    draft_head_shared: bool | None = Field(
        description="True if the log says that the draft shares the target's embedding and head; "
        "null if it does not, which proves nothing."
    )
    unproven: list[str] = Field(
        default_factory=list, description="Of `proof`, what the log of the start did not say."
    )
    backends: list[str] = Field(
        default_factory=list, description="The backends of the experts that its log names."
    )
    drafted: int | None = Field(None, description="Tokens drafted while it started.")
    accepted: int | None = Field(None, description="Of these, tokens accepted.")
    phases: dict[str, float] = Field(
        default_factory=dict, description="Seconds that each phase of the start took."
    )
    start_seconds: float | None = Field(None, description="Seconds that this start took.")
    first_start_seconds: float | None = Field(
        None, description="Seconds of this build's first start, with no kernels compiled before."
    )
    later_start_seconds: float | None = Field(
        None, description="Seconds of its latest start with kernels that were compiled before."
    )
