"""The verb `client`: what a program needs that asks the served model, as snippets to paste.

What the model's card says of sampling and efforts stands in the book, with the step that serves it
(`client`); names and context are those that the server itself lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from runbook.steps.client import snippets
from runbook.steps.common import serving
from runbook.steps.common.flags.command import effective_of

FIELDS = ("reasoning", "reasoning_content")
"""Where the reasoning stands in a message: builds of vLLM differ in the name."""


class Reasoning(TypedDict):
    """`fields` are the names that the reasoning has in a message; `off` is what a request says to
    be answered without."""

    fields: list[str]
    efforts: list[str]
    default_effort: str | None
    off: dict[str, Any]


class Snippets(TypedDict):
    """Text to paste into a shell, a program in Python, and a shell again."""

    environment: str
    python: str
    curl: str


class Client(TypedDict):
    """The answer of `client`. `sampling` is what the model's card advises, by use; `api_key_file`
    is null if no key is asked for."""

    book: str
    base_url: str
    models: list[str]
    context: int | None
    max_output_tokens: int | None
    api_key_file: str | None
    tools: bool
    reasoning: Reasoning | None
    sampling: dict[str, dict[str, float]]
    snippets: Snippets


def client(*, book: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """What to say of the model that a book's last server serves. Raises PreconditionNotMet."""
    step = _serving(book)
    outputs = step["outputs"]
    given = vars(effective_of(step["with"]))
    advice = given.get("client") or {}
    listed = _listed(outputs)
    body: dict[str, Any] = {
        "book": book["name"],
        "base_url": outputs["endpoint"],
        "models": [str(model["id"]) for model in listed],
        "context": next((m["max_model_len"] for m in listed if m.get("max_model_len")), None),
        "max_output_tokens": advice.get("max_output_tokens"),
        "api_key_file": outputs.get("api_key_file"),
        "tools": bool(given.get("enable_auto_tool_choice")),
        "reasoning": _reasoning(given, advice),
        "sampling": {use: _told(values) for use, values in (advice.get("sampling") or {}).items()},
    }
    body["snippets"] = {
        "environment": snippets.environment(body),
        "python": snippets.python(body),
        "curl": snippets.curl(body),
    }
    return {"body": body, "verbatim": snippets.text(body)}


def _serving(book: Mapping[str, Any]) -> Mapping[str, Any]:
    """The step that serves, which has outputs."""
    step = serving.step_of(book["name"], book["steps"])
    if not step["outputs"]:
        raise serving.not_served("no server was started")
    return step


def _listed(outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the server lists of its models."""
    from runbook.steps.common import endpoint, http
    from runbook.steps.common.transport import requests

    url = f"{outputs['endpoint']}/models"
    serving.require_healthy(url)
    with http.session(local=True, timeout=endpoint.SECONDS * 5) as session:
        if (key := serving.api_key(outputs.get("api_key_file"))) is not None:
            session.headers["Authorization"] = f"Bearer {key}"
        try:
            answer = session.get(url)
            answer.raise_for_status()
            return [{**model, "id": model["id"]} for model in answer.json()["data"]]
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise serving.not_served(f"its server does not list its models: {error}") from error


def _reasoning(given: Mapping[str, Any], advice: Mapping[str, Any]) -> dict[str, Any] | None:
    if not given.get("reasoning_parser"):
        return None
    return {
        "fields": list(FIELDS),
        "efforts": list(advice.get("efforts") or ()),
        "default_effort": advice.get("default_effort"),
        "off": dict(advice.get("without_reasoning") or {}),
    }


def _told(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
