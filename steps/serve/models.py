"""Inputs and outputs of the serve step. Flags of `vllm serve` keep the names vLLM gives them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from runbook.steps.common.flags.models import SHA256, Served
from runbook.steps.common.models import Process, Reference, Strict


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


class Sampling(Strict):
    """What the model's card advises for one use."""

    temperature: float | None = Field(None, ge=0, description="Null: not said.")
    top_p: float | None = Field(None, gt=0, le=1, description="Null: not said.")


class Client(Strict):
    """What one who asks the model should know; `runbook client` tells it."""

    efforts: list[str] = Field(
        default_factory=list, description="Values of `reasoning_effort` that the model knows."
    )
    default_effort: str | None = Field(None, description="That of a request which names none.")
    without_reasoning: dict[str, Any] = Field(
        default_factory=dict,
        description="What a request has besides to be answered without reasoning.",
    )
    sampling: dict[str, Sampling] = Field(
        default_factory=dict, description="By use, as `agents`; the first stands in the snippets."
    )
    max_output_tokens: int | None = Field(
        None, ge=1, description="The most that an answer has, reasoning included."
    )


class Release(Strict):
    """The vLLM that serves, for the rules that depend on it."""

    version: str | None = Field(None, description="Its version, as `0.33.0`.")
    series: str = Field("", description="The patch series that it has; empty: none.")
    variables: list[str] | None = Field(
        None, description="The VLLM_* variables that it knows; any other is a finding."
    )


class Inputs(Served):
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

    path: list[str] = Field(default_factory=list, description="Folders put before PATH.")
    trusted_code: list[Annotated[str, Field(pattern=SHA256)]] = Field(
        default_factory=list,
        description="SHA-256 of each file of Python beside the weights that was read and may run. "
        "With trust_remote_code on, a server is started only if all of them are named.",
    )
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
    client: Client | None = Field(
        None, description="What one who asks the model should know (`runbook client`)."
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
    near_limit_tokens: int = Field(
        65536,
        ge=1,
        description="Tokens of that request at most: 52,000 took 28 s on two H200, and half a "
        "million would take minutes.",
    )
    rollback: bool = Field(
        True,
        description="If a server with other settings does not become ready, or its start is "
        "cancelled, start the one again that served before.",
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
    reference: Reference | None = Field(
        None, description="What one stream of this profile reached elsewhere on such cards."
    )
    log: str = Field(description="Path of the server's log.")
    process: Process = Field(description="The server's process.")
    supervisor: str = Field(description="What keeps it: `session` or `systemd-user`.")
    unit: str | None = Field(None, description="The unit of the user's systemd that keeps it.")
    kv_cache_tokens: int | None = Field(description="Tokens that fit into the KV cache.")
    max_concurrency: float | None = Field(
        description="Requests of full context length that fit into the KV cache."
    )
    api_key_file: str | None = Field(None, description="File of the API key; null: none is asked.")
    near_limit_tokens: int | None = Field(
        None, description="Tokens of the long prompt that was answered while it started."
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
