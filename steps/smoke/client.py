"""A client of the OpenAI chat API, as far as smoke tests need it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from runbook.steps.common import http
from runbook.steps.common.transport import requests
from runbook.steps.smoke.answers import Answer, Stream, Timing, of_body

SETTLE_SECONDS = 5.0
SETTLE_POLL = 0.2


class Unanswered(Exception):
    """The server gave no usable answer: no connection, an error status, or a malformed body.
    `status` is that of HTTP where there was one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Asks one server. Every method raises `Unanswered` with the server's own words."""

    def __init__(self, endpoint: str, model: str, timeout: float, key: str | None = None) -> None:
        self.model = model
        self.key = key
        self.timeout = timeout
        self.answers: list[Answer] = []
        self.endpoint = endpoint.rstrip("/")
        self.root = self.endpoint.removesuffix("/v1")
        self.http = http.session(local=True, timeout=timeout)
        if key is not None:
            self.http.headers["Authorization"] = f"Bearer {key}"

    def another(self) -> Client:
        """A client of the same server, for another thread."""
        return Client(self.endpoint, self.model, self.timeout, self.key)

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
            answer = of_body(body)
        except (KeyError, IndexError, TypeError) as error:
            raise Unanswered(f"the answer is malformed: {str(body)[:500]}") from error
        self.answers.append(answer)
        return answer

    def stream(self, case: dict[str, Any], **more: Any) -> tuple[Answer, Timing]:
        """One streamed completion, timed."""
        request = self._completion(case) | more
        request |= {"stream": True, "stream_options": {"include_usage": True}}
        url = f"{self.endpoint}/chat/completions"
        first = last = None
        streamed = Stream()
        began = time.perf_counter()
        try:
            with self.http.post(url, json=request, stream=True) as response:
                if response.status_code >= 400:
                    raise _error_status(response)
                for event in _events(response):
                    if streamed.add(event):
                        last = time.perf_counter() - began
                        first = last if first is None else first
        except requests.RequestException as error:
            raise Unanswered(http.reason(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Unanswered(f"the stream is malformed: {error}") from error
        if first is None or last is None or not streamed.has_usage:
            raise Unanswered("the stream carried no text" if first is None else "it had no usage")
        self.answers.append(streamed.answer)
        return streamed.answer, Timing(first, last, streamed.answer.completion_tokens)

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

    def _request(self, method: str, url: str, body: Any = None) -> requests.Response:
        try:
            response = self.http.request(method, url, json=body)
        except requests.RequestException as error:
            raise Unanswered(f"{type(error).__name__}: {http.reason(error)}") from error
        if response.status_code >= 400:
            raise _error_status(response)
        return response

    def _json(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        response = self._request(method, url, body)
        try:
            value: dict[str, Any] = response.json()
        except ValueError as error:
            raise Unanswered(f"the answer is not JSON: {response.text[:500]}") from error
        return value


def _error_status(response: requests.Response) -> Unanswered:
    words = f"HTTP {response.status_code}: {response.text[:500]}"
    return Unanswered(words, response.status_code)


def _events(response: requests.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream, without its end mark (server-sent events, one JSON per event)."""
    # As it arrives: chunk by chunk, or byte by byte where a server sends no chunks.
    size = None if getattr(response.raw, "chunked", False) else 1
    for line in response.iter_lines(chunk_size=size):
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield json.loads(data)


def _counts(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("vllm:spec_decode")]
