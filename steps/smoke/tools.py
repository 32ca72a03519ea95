"""Checks of what the model calls: tools, whole and streamed, chosen or named, and JSON schemas."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from runbook.steps.smoke.answers import Answer
from runbook.steps.smoke.client import Client, Unanswered
from runbook.steps.smoke.findings import Findings, Layer, from_build, from_model
from runbook.steps.smoke.schema import nonconformity

PARSER = (
    "set `tool_call_parser`, `enable_auto_tool_choice` and `tokenizer_mode` of the serve step: the "
    "call stayed in the text"
)


def tool_call(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """A question for a tool is answered by one call of the right function."""
    answer = client.chat(inputs.tool_call, **_tools(inputs.tool_call))
    _judge_call(found, "tool", inputs.tool_call, answer, "weights")


def tool_stream(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """The same streamed: put together, it is the same call, and no markup comes between."""
    answer, _ = client.stream(inputs.tool_call, **_tools(inputs.tool_call))
    _judge_call(found, "streamed_tool", inputs.tool_call, answer, "parser")


def named_tool(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """A call that the client names is made: its arguments are constrained by a grammar."""
    case = inputs.named_tool
    name = case["expect_name"]
    choice = {"tool_choice": {"type": "function", "function": {"name": name}}}
    try:
        answer = client.chat(case, **_tools(case) | choice)
    except Unanswered as error:
        found.fail("named_tool_refused", "grammar", f"named tool choice: {error}", _grammar())
        return
    _judge_call(found, "named_tool", case, answer, "grammar")


def json_schema(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """An answer of a given schema, while drafts are verified against the same grammar."""
    case = inputs.json_schema
    wanted = {"name": "answer", "schema": case["shape"], "strict": True}
    try:
        answer = client.chat(case, response_format={"type": "json_schema", "json_schema": wanted})
    except Unanswered as error:
        found.fail("json_schema_refused", "grammar", f"JSON schema: {error}", _grammar())
        return
    found.note(answer.content[:200])
    try:
        value = json.loads(answer.content)
    except ValueError:
        fault: str | None = "it is no JSON"
    else:
        fault = nonconformity(value, case["shape"])
    if fault is None:
        return
    if answer.finish_reason == "length":
        remedy = "raise `max_tokens` of `json_schema`: the answer was cut"
        found.fail("json_schema_cut", "question", f"{fault}: {answer.content[:200]!r}", remedy)
        return
    message = f"the answer is not of its schema: {fault}: {answer.content[:200]!r}"
    found.fail("json_schema_violated", "grammar", message, _grammar())


def _grammar() -> Any:
    return from_build(
        "if it works with `speculative_config: null` of the serve step, the grammar does not "
        "follow the drafts; another build may: {command}"
    )


def _tools(case: dict[str, Any]) -> dict[str, Any]:
    tools = [{"type": "function", "function": tool} for tool in case["tools"]]
    return {"tools": tools, "tool_choice": "auto"}


def _judge_call(
    found: Findings, name: str, case: dict[str, Any], answer: Answer, layer: Layer
) -> None:
    """One call of the right function with the right arguments; `layer` is at fault if the call is
    there and wrong."""
    calls = [call["function"] for call in answer.tool_calls]
    found.note("; ".join(f"{c['name']}({c['arguments']})" for c in calls) or answer.content[:200])
    if (leak := answer.leaks()) is not None:
        message = f"the markup {leak!r} is left in the answer: {answer.content[:200]!r}"
        found.fail(f"{name}_call_leaks", "parser", message, PARSER)
        return
    if len(calls) != 1:
        found.fail(
            f"{name}_call_missing",
            layer,
            f"{len(calls)} tool calls, expected one; the answer is {answer.content[:200]!r}",
            from_model("attention is damaged, or the prompt was cut: {command}"),
        )
        return
    if calls[0]["name"] != case["expect_name"]:
        message = f"it calls {calls[0]['name']}, expected {case['expect_name']}"
        found.fail(f"{name}_name_differs", layer, message, from_model())
    try:
        arguments = json.loads(calls[0]["arguments"])
    except ValueError:
        arguments = None
    want = case["expect_arguments"]
    if arguments != want if want is not None else not isinstance(arguments, dict):
        meant = "a JSON object" if want is None else json.dumps(want)
        message = f"the arguments are {calls[0]['arguments']}, expected {meant}"
        found.fail(f"{name}_arguments_differ", layer, message, from_model())
