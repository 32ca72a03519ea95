"""A client of the OpenAI chat API, as far as smoke tests need it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

SETTLE_SECONDS = 5.0
SETTLE_POLL = 0.2


class Unanswered(Exception):
    """The server gave no usable answer: no connection, an error status, or a malformed body."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion. `reasoning` is what came in `reasoning` or `reasoning_content`: builds
    of vLLM differ in the name, and a client must read both."""

    content: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str
    completion_tokens: int


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


class Client:
    """Asks one server. Every method raises `Unanswered` with the server's own words."""

    def __init__(self, endpoint: str, model: str, timeout: float) -> None:
        self.model = model
        self.endpoint = endpoint.rstrip("/")
        self.root = self.endpoint.removesuffix("/v1")
        # The environment's proxies are not for this machine's own server.
        self.http = httpx.Client(timeout=timeout, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()

    def models(self) -> list[str]:
        """The names the server answers to."""
        listed = self._json("GET", f"{self.endpoint}/models")
        try:
            return [str(model["id"]) for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise Unanswered(f"the list of models is malformed: {listed}") from error

    def metrics(self) -> str:
        return self._request("GET", f"{self.root}/metrics").text

    def settled_metrics(self) -> str:
        """The metrics once they stand still: counts follow the last answer by some moments."""
        deadline = time.monotonic() + SETTLE_SECONDS
        text = self.metrics()
        while time.monotonic() < deadline:
            time.sleep(SETTLE_POLL)
            again = self.metrics()
            if _counts(again) == _counts(text):
                break
            text = again
        return text

    def chat(self, case: dict[str, Any], **more: Any) -> Answer:
        """One completion of {prompt, max_tokens, chat_template_kwargs} at temperature 0."""
        body = self._json(
            "POST", f"{self.endpoint}/chat/completions", self._completion(case) | more
        )
        try:
            choice = body["choices"][0]
            message = choice["message"]
            return Answer(
                content=message.get("content") or "",
                reasoning=message.get("reasoning") or message.get("reasoning_content") or "",
                tool_calls=message.get("tool_calls") or [],
                finish_reason=choice["finish_reason"],
                completion_tokens=body["usage"]["completion_tokens"],
            )
        except (KeyError, IndexError, TypeError) as error:
            raise Unanswered(f"the answer is malformed: {str(body)[:500]}") from error

    def stream(self, case: dict[str, Any], **more: Any) -> Timing:
        """One streamed completion, timed."""
        request = self._completion(case) | more
        request |= {"stream": True, "stream_options": {"include_usage": True}}
        url = f"{self.endpoint}/chat/completions"
        first = last = tokens = None
        began = time.perf_counter()
        try:
            with self.http.stream("POST", url, json=request) as response:
                if response.is_error:
                    raise Unanswered(f"HTTP {response.status_code}: {response.read()[:500]!r}")
                for event in _events(response):
                    if _carries_text(event):
                        last = time.perf_counter() - began
                        first = last if first is None else first
                    if event.get("usage"):
                        tokens = event["usage"]["completion_tokens"]
        except httpx.HTTPError as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise Unanswered(f"the stream is malformed: {error}") from error
        if first is None or last is None or tokens is None:
            raise Unanswered("the stream carried no text" if first is None else "it had no usage")
        return Timing(first, last, tokens)

    def _completion(self, case: dict[str, Any]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": case["prompt"]}],
            "max_tokens": case["max_tokens"],
            "temperature": 0,
        }
        if case["chat_template_kwargs"]:
            request["chat_template_kwargs"] = case["chat_template_kwargs"]
        return request

    def _request(self, method: str, url: str, body: Any = None) -> httpx.Response:
        try:
            response = self.http.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        if response.is_error:
            raise Unanswered(f"HTTP {response.status_code}: {response.text[:500]}")
        return response

    def _json(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        response = self._request(method, url, body)
        try:
            value: dict[str, Any] = response.json()
        except ValueError as error:
            raise Unanswered(f"the answer is not JSON: {response.text[:500]}") from error
        return value


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream, without its end mark (server-sent events, one JSON per event)."""
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _carries_text(event: dict[str, Any]) -> bool:
    return any(
        choice["delta"].get(name)
        for choice in event.get("choices", ())
        for name in ("content", "reasoning", "reasoning_content", "tool_calls")
    )


def _counts(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("vllm:spec_decode")]
