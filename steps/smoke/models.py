"""Inputs and outputs of the smoke step."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from runbook.steps.common.models import Process, Reference, Strict
from runbook.steps.smoke.schema import unknown_keywords


class Prompt(Strict):
    """One question to the model, asked at temperature 0."""

    prompt: str = Field(description="What is asked.")
    max_tokens: int = Field(128, ge=1, description="Tokens generated at most, reasoning included.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed on to the chat template, as `thinking: false`."
    )


class Echo(Prompt):
    """A question with a known answer."""

    expect: str | None = Field(
        None, description="The exact answer; null accepts any that is not empty."
    )
    contains: str | None = Field(
        None, description="What the answer must have in it; null asks nothing."
    )


class Reasoning(Prompt):
    """A question that makes the model reason before it answers."""

    expect: str | None = Field(
        None, description="The exact reasoning; null accepts any that is not empty."
    )
    expect_answer: str | None = Field(
        None, description="The exact answer after it; null accepts any that is not empty."
    )


class Efforts(Prompt):
    """A question asked at each effort of reasoning, as `reasoning_effort` of the OpenAI API. Each
    effort has its own start of the prompt, so its tokens differ."""

    efforts: list[str] = Field(
        default_factory=lambda: ["low", "high", "max"],
        min_length=1,
        description="The efforts that the model's encoding knows.",
    )
    default: str | None = Field(
        None,
        description="The effort of a request that names none, which then reasons too; null does "
        "not ask that.",
    )


class Tool(Strict):
    """A function that the model may call."""

    name: str = Field(description="Its name.")
    description: str = Field("", description="What it does.")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON schema of its arguments.",
    )


class ToolCall(Prompt):
    """A question that the model answers by calling a function."""

    tools: list[Tool] = Field(min_length=1, description="The functions on offer.")
    expect_name: str = Field(description="The function it must call.")
    expect_arguments: dict[str, Any] | None = Field(
        None, description="The exact arguments; null accepts any object."
    )


class JsonSchema(Prompt):
    """A question whose answer is constrained to a JSON schema."""

    shape: dict[str, Any] = Field(
        description="The JSON schema, of `type`, `properties`, `required`, `enum`, `items` and "
        "`additionalProperties`.",
    )

    @field_validator("shape")
    @classmethod
    def _known(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if unknown := unknown_keywords(schema):
            raise ValueError(f"what these say is not looked at: {', '.join(sorted(unknown))}")
        return schema


class Concurrency(Strict):
    """As many questions at once as the server takes, each with its own right answer."""

    sequences: int = Field(ge=2, description="How many at once: the profile's `max_num_seqs`.")
    cases: list[Echo] = Field(
        default_factory=list, description="What is asked, in turn; the echo's question if empty."
    )


class Needle(Strict):
    """A sentence far back in a long text is found, at three depths."""

    tokens: int = Field(30000, ge=1000, description="Tokens of the text, at least.")
    max_tokens: int = Field(64, ge=1, description="Tokens generated at most.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed on to the chat template."
    )


class Counts(Strict):
    """Exact counts of tokens."""

    drafted: int = Field(ge=0, description="Tokens drafted.")
    accepted: int = Field(ge=0, description="Of these, tokens accepted.")


class Speculation(Strict):
    """Whether drafts happen and are accepted, by the server's own counters."""

    prompts: list[str] = Field(min_length=1, description="What is asked, one after the other.")
    max_tokens: int = Field(128, ge=2, description="Tokens generated at most per prompt.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed on to the chat template."
    )
    expect: Counts | None = Field(None, description="The exact counts, where they are known.")
    min_acceptance: float | None = Field(
        None, ge=0, le=1, description="The least share of drafted tokens that are accepted."
    )


class Speed(Prompt):
    """Time to the first token and decode rate of a single stream."""

    ignore_eos: bool = Field(
        False, description="Go on to max_tokens whatever the model says, for a steady measure."
    )
    repetitions: int = Field(1, ge=1, description="Measurements; the median is reported.")
    min_decode_tokens_per_second: float | None = Field(
        None, gt=0, description="The least rate; null measures without judging."
    )
    max_ttft_seconds: float | None = Field(
        None, gt=0, description="The longest time to the first token; null does not judge."
    )
    reference: Reference | None = Field(
        None, description="What one stream reached elsewhere on such cards (of the serve step)."
    )
    least_share: float = Field(
        0.8, gt=0, le=1, description="The least share of the reference's rate."
    )
    most_times: float = Field(
        3.0,
        ge=1,
        description="How many times the reference's time to the first token at most: "
        "that depends on the prompt, too.",
    )


class Inputs(Strict):
    """Which server is asked what."""

    endpoint: str = Field(description="Base URL of the OpenAI API, as `http://127.0.0.1:8000/v1`.")
    model: str = Field(description="The name to ask for.")
    process: Process = Field(description="The server's process: what the result is about.")
    request_timeout: float = Field(
        300, gt=0, description="Seconds that one request may take at most."
    )
    api_key_file: str | None = Field(None, description="File of the server's API key, if any.")
    about: dict[str, Any] = Field(
        default_factory=dict,
        description="What the result is of, kept with it: build, profile, weights.",
    )
    echo: Echo = Field(description="A question with a known answer.")
    finish: bool = Field(
        True, description="Whether the echo ends by itself, and a cut one by its length."
    )
    reasoning: Reasoning | None = Field(None, description="Reasoning; not asked if null.")
    efforts: Efforts | None = Field(
        None, description="The efforts of reasoning; not asked if null."
    )
    tool_call: ToolCall | None = Field(
        None, description="A tool call, whole and streamed; not asked if null."
    )
    named_tool: ToolCall | None = Field(
        None, description="A tool call that the client names; not asked if null."
    )
    json_schema: JsonSchema | None = Field(
        None, description="An answer of a JSON schema; not asked if null."
    )
    concurrency: Concurrency | None = Field(
        None, description="Many questions at once; not asked if null."
    )
    needle: Needle | None = Field(
        None, description="Recall over a long text; for a real model; not asked if null."
    )
    speculation: Speculation | None = Field(None, description="Drafts; not asked if null.")
    speed: Speed | None = Field(None, description="Speed; not measured if null.")


class Outputs(Strict):
    """What was measured."""

    model: str = Field(description="The name that was asked for.")
    decode_tokens_per_second: float | None = Field(description="Of a single stream; median.")
    ttft_seconds: float | None = Field(description="Time to the first token; median.")
    drafted: int | None = Field(description="Tokens drafted.")
    accepted: int | None = Field(description="Of these, tokens accepted.")
    acceptance: float | None = Field(description="accepted / drafted.")
    acceptance_by_position: list[float] | None = Field(
        None, description="The share of drafts that were accepted up to each place."
    )
    tokens_per_step: float | None = Field(
        None, description="Tokens of a forward pass: its own and the accepted ones."
    )
    checks: list[str] = Field(
        default_factory=list, description="The checks that passed, in their order."
    )
