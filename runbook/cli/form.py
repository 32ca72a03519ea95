"""In which form an answer is given: whole (JSON), brief (JSON for who pays for each line), or text
for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import click

Form: TypeAlias = Literal["json", "brief", "human"]
FORMS = ("json", "brief", "human")
WAIT_SECONDS = "100"
"""Of each `wait` that an answer names: less than the two minutes after which shells of agents are
cut off if they ask for no more."""

# What coding agents set in the shells that they start, as the npm package @vercel/detect-agent
# 1.1.1 has it (github.com/vercel/vercel, packages/detect-agent), without what is also set where a
# person types (CURSOR_TRACE_ID, REPL_ID, COPILOT_*); the last three are from the crate
# mise-agent-env and its like. AI_AGENT is proposed there as the name for all.
AGENTS = (
    "AI_AGENT",
    "ANTIGRAVITY_AGENT",
    "AUGMENT_AGENT",
    "CLAUDECODE",
    "CLAUDE_CODE",
    "CODEX_CI",
    "CODEX_SANDBOX",
    "CODEX_THREAD_ID",
    "CURSOR_AGENT",
    "GEMINI_CLI",
    "OPENCODE_CLIENT",
    "CLINE_ACTIVE",
    "COPILOT_CLI",
    "GOOSE_TERMINAL",
)


def by_agent() -> bool:
    """Whether an agent called this program. A terminal makes no difference: some agents have one,
    and a pipe makes none: what people pipe, an agent's shell pipes too."""
    return any(os.environ.get(name) for name in AGENTS)


def resolve(asked: str | None) -> Form:
    """The form of what was asked for; of nothing, what fits the caller."""
    for form in FORMS:
        if asked == form:
            return form  # type: ignore[return-value]
    return "brief" if by_agent() else "human"


def of_arguments(arguments: Sequence[str]) -> Form:
    """The form that a command line asks for which cannot be read otherwise."""
    return resolve(next((form for form in FORMS if f"--{form}" in arguments), None))


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say so; the function is given `form`."""

    def resolved(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Form:
        return resolve(value)

    texts = {
        "json": "One JSON document, whole.",
        "brief": "The same without what is empty or said twice; default for agents.",
        "human": "Text for people; default for them.",
    }
    for name, text in reversed(texts.items()):
        function = click.option(
            f"--{name}", "form", flag_value=name, default=None, callback=resolved, help=text
        )(function)
    return function
