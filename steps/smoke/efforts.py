"""Checks of the efforts of reasoning that a model's encoding knows."""

from __future__ import annotations

from types import SimpleNamespace

from runbook.steps.smoke.client import Client
from runbook.steps.smoke.findings import Findings
from runbook.steps.smoke.words import judge

ENCODING = (
    "set `tokenizer_mode` and `reasoning_parser` of the serve step: the encoding of the prompt is "
    "not the model's"
)


def efforts(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """The model reasons at each effort, each changes the prompt, and one is the default."""
    case = inputs.efforts
    tokens: dict[str, int] = {}
    told = []
    for effort in case["efforts"]:
        answer = client.chat(case, reasoning_effort=effort)
        judge(found, f"effort_{effort}", "reasoning", answer.reasoning, None, answer)
        judge(found, f"effort_{effort}_answer", "answer", answer.content, None, answer)
        tokens[effort] = answer.prompt_tokens
        told.append(f"{effort}: {answer.completion_tokens} tokens to {answer.prompt_tokens}")
    if len(set(tokens.values())) < len(tokens):
        same = ", ".join(f"{effort} {count}" for effort, count in tokens.items())
        message = f"not each effort has a prompt of its own; tokens of the prompt: {same}"
        found.fail("efforts_alike", "parser", message, ENCODING)
    if case["default"] is not None:
        _default(client, case, tokens, found)
    found.note("; ".join(told))


def _default(
    client: Client, case: dict[str, object], tokens: dict[str, int], found: Findings
) -> None:
    """A request that says nothing of reasoning."""
    wanted = str(case["default"])
    answer = client.chat({**case, "chat_template_kwargs": {}})
    if not answer.reasoning.strip():
        message = "a request that says nothing of reasoning is answered without"
        found.fail("default_without_reasoning", "parser", message, ENCODING)
    elif answer.prompt_tokens != tokens.get(wanted, answer.prompt_tokens):
        message = (
            f"a request that names no effort has {answer.prompt_tokens} tokens of prompt; one of "
            f"effort {wanted} has {tokens[wanted]}"
        )
        found.fail("default_effort_differs", "parser", message, ENCODING)
