"""The assertions of the smoke test, each a function that asks the server and judges."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Reason
from runbook.steps.common.metrics import Speculation
from runbook.steps.smoke.client import Answer, Client, Unanswered

FROM_MTP = "`runbook run --from mtp`"
MARKUP = ("<｜DSML｜", "<｜tool▁calls▁begin｜>", "<tool_call>")
"""What a tool call looks like where no parser took it out of the text."""


@dataclass
class Findings:
    """What was measured, and what was not as it should be."""

    measured: dict[str, Any] = field(default_factory=dict)
    failures: list[Reason] = field(default_factory=list)

    def fail(self, code: str, message: str, remedy: str) -> None:
        self.failures.append(Reason(code, message, remedy))


def models(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """The server answers to the name."""
    names = client.models()
    if inputs.model not in names:
        found.fail(
            "model_not_listed",
            f"the server answers to {', '.join(names) or 'no name'}, not to {inputs.model}",
            "`runbook run --from serve`",
        )


def echo(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """A fixed prompt gives a fixed answer."""
    case = inputs.echo
    answer = client.chat(case)
    _judge(found, "echo", "answer", answer.content, case["expect"], answer)


def reasoning(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """The reasoning comes apart from the answer."""
    case = inputs.reasoning
    answer = client.chat(case)
    _judge(found, "reasoning", "reasoning", answer.reasoning, case["expect"], answer)
    _judge(found, "reasoning_answer", "answer", answer.content, case["expect_answer"], answer)


def _judge(
    found: Findings, name: str, what: str, got: str, want: str | None, answer: Answer
) -> None:
    if want is not None and got == want:
        return
    if got.strip() and want is None:
        return
    if not got.strip():
        found.fail(f"{name}_empty", *_why_empty(what, answer))
        return
    found.fail(
        f"{name}_differs",
        f"the {what} is {got!r}, expected {want!r}",
        f"the weights, their packing or a kernel is damaged: {FROM_MTP}",
    )


def _why_empty(what: str, answer: Answer) -> tuple[str, str]:
    """(message, remedy) for a part of an answer that is empty."""
    message = f"the {what} is empty ({answer.completion_tokens} tokens, {answer.finish_reason})"
    if answer.finish_reason == "length":
        return message, "raise `max_tokens`: the tokens were used up before it"
    if what == "reasoning":
        return message, "set `reasoning_parser` of the serve step, or ask with `thinking: true`"
    return message, "read the server's log: `runbook logs serve`"


def tool_call(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """A question for a tool is answered by one call of the right function."""
    case = inputs.tool_call
    tools = [{"type": "function", "function": tool} for tool in case["tools"]]
    answer = client.chat(case, tools=tools, tool_choice="auto")
    if len(answer.tool_calls) != 1:
        markup = any(mark in answer.content for mark in MARKUP)
        found.fail(
            "tool_call_missing",
            f"{len(answer.tool_calls)} tool calls, expected one; the answer is {answer.content!r}",
            "set `tool_call_parser`, `enable_auto_tool_choice` and `tokenizer_mode` of the serve "
            "step: the call stayed in the text"
            if markup
            else f"attention is damaged, or the prompt was cut: {FROM_MTP}",
        )
        return
    call = answer.tool_calls[0]["function"]
    if call["name"] != case["expect_name"]:
        found.fail(
            "tool_name_differs",
            f"it calls {call['name']}, expected {case['expect_name']}",
            FROM_MTP,
        )
    try:
        arguments = json.loads(call["arguments"])
    except ValueError:
        arguments = None
    want = case["expect_arguments"]
    if arguments != want if want is not None else not isinstance(arguments, dict):
        found.fail(
            "tool_arguments_differ",
            f"the arguments are {call['arguments']}, expected "
            + ("a JSON object" if want is None else json.dumps(want)),
            FROM_MTP,
        )


def speculation(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """Tokens are drafted and accepted, counted by the difference of the server's counters."""
    case = inputs.speculation
    before = Speculation.read(client.settled_metrics())
    for prompt in case["prompts"]:
        client.chat(case | {"prompt": prompt})
    after = Speculation.read(client.settled_metrics())
    if before is None or after is None:
        found.fail(
            "speculation_off",
            "the server does not speculate: /metrics has no spec_decode counters",
            "set `speculative_config` of the serve step",
        )
        return
    counts = after.since(before)
    acceptance = counts.acceptance
    found.measured |= {
        "drafted": counts.drafted,
        "accepted": counts.accepted,
        "acceptance": None if acceptance is None else round(acceptance, 4),
    }
    if acceptance is None:
        found.fail("nothing_drafted", "no token was drafted", "`runbook run --from serve`")
        return
    want = case["expect"]
    if want is not None and (counts.drafted, counts.accepted) != (
        want["drafted"],
        want["accepted"],
    ):
        found.fail(
            "draft_counts_differ",
            f"{counts.accepted} of {counts.drafted} drafted tokens were accepted, "
            f"expected {want['accepted']} of {want['drafted']}",
            f"if no one else asked the server meanwhile, the MTP head is damaged: {FROM_MTP}",
        )
    least = case["min_acceptance"]
    if least is not None and acceptance < least:
        found.fail(
            "acceptance_low",
            f"{acceptance:.1%} of the drafted tokens were accepted, expected {least:.1%} or more",
            f"the MTP head, its embedding or its quantisation is damaged: {FROM_MTP}",
        )


def speed(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """Time to the first token, and decode rate, of a single stream."""
    case = inputs.speed
    more = {"ignore_eos": True} if case["ignore_eos"] else {}
    timings = [client.stream(case, **more) for _ in range(case["repetitions"])]
    ttft = statistics.median(t.ttft for t in timings)
    rates = [r for t in timings if (r := t.decode_tokens_per_second) is not None]
    rate = statistics.median(rates) if rates else None
    found.measured |= {
        "ttft_seconds": round(ttft, 4),
        "decode_tokens_per_second": None if rate is None else round(rate, 2),
    }
    least = case["min_decode_tokens_per_second"]
    if least is not None and (rate is None or rate < least):
        found.fail(
            "decode_slow",
            f"decodes {rate or 0:.1f} tokens/s, expected {least:g} or more",
            "look for another load on the GPUs (`nvidia-smi`), a power cap, or eager mode",
        )
    longest = case["max_ttft_seconds"]
    if longest is not None and ttft > longest:
        found.fail(
            "first_token_slow",
            f"the first token takes {ttft:.2f} s, expected {longest:g} s or less",
            "look for another load, or other NCCL settings in the serve step's `env`",
        )


Assertion = Callable[[Client, SimpleNamespace, Findings], None]
ASSERTIONS: dict[str, Assertion] = {
    "models": models,
    "echo": echo,
    "reasoning": reasoning,
    "tool_call": tool_call,
    "speculation": speculation,
    "speed": speed,
}


def wanted(inputs: SimpleNamespace) -> Iterator[tuple[str, Assertion]]:
    """The assertions that the inputs ask for, in order."""
    for name, assertion in ASSERTIONS.items():
        if name == "models" or getattr(inputs, name) is not None:
            yield name, assertion


def examine(
    client: Client, inputs: SimpleNamespace, done: Callable[[str, int, int], None]
) -> Findings:
    """All assertions, each whether or not others fail; `done(name, n, of)` before each."""
    found = Findings()
    cases = list(wanted(inputs))
    for n, (name, assertion) in enumerate(cases):
        done(name, n, len(cases))
        try:
            assertion(client, inputs, found)
        except Unanswered as error:
            found.fail(
                f"{name}_unanswered", f"{name}: {error}", "`runbook logs serve`, `runbook run`"
            )
    return found
