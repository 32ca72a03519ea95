"""What a server answered, whole or streamed, and what in it betrays a fault."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

MARKUP = re.compile(
    r"<｜[^｜<>\n]{1,40}｜|</?think>|</?tool_calls?>|<\|[a-z_]{2,30}\|>|\[/?TOOL_CALLS?\]"
)
"""Special tokens and the markup of reasoning and tool calls, of DeepSeek's and other templates:
parsers take them out, so none may be left in what a client sees."""


@dataclass(slots=True)
class Answer:
    """One completion. `reasoning` is what came in `reasoning` or `reasoning_content`: builds
    of vLLM differ in the name, and a client must read both."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""
    completion_tokens: int = 0
    prompt_tokens: int = 0

    def leaks(self) -> str | None:
        """Markup that a parser should have taken out; None if there is none."""
        arguments = [str(call.get("function", {}).get("arguments")) for call in self.tool_calls]
        for text in (self.content, self.reasoning, *arguments):
            if (found := MARKUP.search(text)) is not None:
                return found[0]
        return None

    def is_only_markup(self) -> bool:
        """Whether it says nothing but special tokens, as of logits that are no numbers."""
        return bool(self.content) and not MARKUP.sub("", self.content).strip(" ｜>")


@dataclass(frozen=True, slots=True)
class Timing:
    """One streamed completion, in seconds since the request was sent."""

    first: float
    last: float
    completion_tokens: int

    @property
    def ttft(self) -> float:
        """Time to the first token: the first event that carries text, of whatever kind."""
        return self.first

    @property
    def decode_tokens_per_second(self) -> float | None:
        """(completion_tokens - 1) / (t_last - t_first), the inverse of the time per output token
        of vLLM's own benchmark (vllm/benchmarks/serve.py: tpot = (latency - ttft) /
        (output_len - 1)). Tokens are counted by `usage`, not by events: under speculation one
        event carries several tokens. None if all came in one event.
        """
        if self.last <= self.first or self.completion_tokens < 2:
            return None
        return (self.completion_tokens - 1) / (self.last - self.first)


def of_body(body: dict[str, Any]) -> Answer:
    """From a whole completion. Raises KeyError, IndexError or TypeError if it is malformed."""
    choice = body["choices"][0]
    message = choice["message"]
    return Answer(
        content=message.get("content") or "",
        reasoning=message.get("reasoning") or message.get("reasoning_content") or "",
        tool_calls=message.get("tool_calls") or [],
        finish_reason=choice["finish_reason"],
        completion_tokens=body["usage"]["completion_tokens"],
        prompt_tokens=body["usage"].get("prompt_tokens", 0),
    )


class Stream:
    """A completion put together from its events; `add` takes one and tells whether it has text."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.has_usage = False

    def add(self, event: dict[str, Any]) -> bool:
        """Raises KeyError or TypeError if it is malformed."""
        carries = False
        for choice in event.get("choices", ()):
            carries |= self._delta(choice["delta"])
            self.answer.finish_reason = choice.get("finish_reason") or self.answer.finish_reason
        if event.get("usage"):
            self.answer.completion_tokens = event["usage"]["completion_tokens"]
            self.answer.prompt_tokens = event["usage"].get("prompt_tokens", 0)
            self.has_usage = True
        return carries

    def _delta(self, delta: dict[str, Any]) -> bool:
        self.answer.content += delta.get("content") or ""
        reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
        self.answer.reasoning += reasoning
        calls = delta.get("tool_calls") or []
        for part in calls:
            self._call(part)
        return bool(delta.get("content") or reasoning or calls)

    def _call(self, part: dict[str, Any]) -> None:
        """A part of a tool call: its name comes first, its arguments in pieces."""
        number = part.get("index", 0)
        while len(self.answer.tool_calls) <= number:
            self.answer.tool_calls.append({"function": {"name": "", "arguments": ""}})
        function = self.answer.tool_calls[number]["function"]
        for name in ("name", "arguments"):
            function[name] += (part.get("function") or {}).get(name) or ""
