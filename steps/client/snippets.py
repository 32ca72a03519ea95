"""The snippets: each runs as it stands against the server that it was made for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

QUESTION = "Say hello in five words."
NO_KEY = "none"
"""The clients of OpenAI want some key, also where the server asks for none."""


def request(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request as the model's card advises it for the first use that it names."""
    asked: dict[str, Any] = {
        "model": body["models"][0],
        "messages": [{"role": "user", "content": QUESTION}],
    }
    reasoning = body["reasoning"] or {}
    if reasoning.get("default_effort"):
        asked["reasoning_effort"] = reasoning["default_effort"]
    return asked | next(iter(body["sampling"].values()), {})


def environment(body: Mapping[str, Any]) -> str:
    """For a shell: what OpenAI's clients, and the harnesses over them, read."""
    file = body["api_key_file"]
    key = f'"$(cat {shlex.quote(file)})"' if file else NO_KEY
    return "\n".join(
        [
            f"export OPENAI_BASE_URL={shlex.quote(body['base_url'])}",
            f"export OPENAI_API_KEY={key}",
            f"export OPENAI_MODEL={shlex.quote(body['models'][0])}",
        ]
    )


def curl(body: Mapping[str, Any]) -> str:
    """A request in a shell. The key is read by curl itself: an argument is seen by all users."""
    words = ["curl", "-sS", f"{body['base_url']}/chat/completions"]
    words += ["-H", "Content-Type: application/json", "-d", json.dumps(request(body))]
    line = shlex.join(words)
    file = body["api_key_file"]
    if not file:
        return line
    header = f'printf "Authorization: Bearer %s" "$(cat {shlex.quote(file)})"'
    return f"{header} | {line} -H @-"


def python(body: Mapping[str, Any]) -> str:
    """A program with the package `openai`."""
    file, asked = body["api_key_file"], request(body)
    key = f"Path({json.dumps(file)}).read_text().strip()" if file else json.dumps(NO_KEY)
    lines = ["from pathlib import Path", ""] if file else []
    lines += ["from openai import OpenAI", ""]
    lines += [f"client = OpenAI(base_url={json.dumps(body['base_url'])}, api_key={key})"]
    lines += ["answer = client.chat.completions.create("]
    lines += [f"    {name}={value!r}," for name, value in asked.items()]
    lines += [")", "message = answer.choices[0].message"]
    if body["reasoning"] is not None:
        fields = [f'getattr(message, "{name}", None)' for name in body["reasoning"]["fields"]]
        lines += [f'print("reasoning:", {" or ".join(fields)})']
    lines += ["print(message.content)"]
    return "\n".join(lines)


def text(body: Mapping[str, Any]) -> str:
    """All of it for people."""
    lines = [f"base URL    {body['base_url']}", f"models      {', '.join(body['models'])}"]
    if body["context"]:
        most = body["max_output_tokens"]
        lines += [
            f"context     {body['context']:,} tokens"
            + (f", {most:,} of output at most" if most else "")
        ]
    lines += [f"API key     {body['api_key_file'] or 'none is asked'}"]
    if body["tools"]:
        lines += ["tools       chosen by the model"]
    if (reasoning := body["reasoning"]) is not None:
        lines += [f"reasoning   in `{'` or `'.join(reasoning['fields'])}` of the message"]
        if reasoning["efforts"]:
            default = reasoning["default_effort"]
            told = [f"{e} (default)" if e == default else e for e in reasoning["efforts"]]
            lines += [f"efforts     reasoning_effort {', '.join(told)}"]
        if reasoning["off"]:
            lines += [f"without     {json.dumps(reasoning['off'])}"]
    for use, values in body["sampling"].items():
        lines += [f"sampling    {use}: " + ", ".join(f"{k} {v:g}" for k, v in values.items())]
    for name, what in (("environment", "environment"), ("curl", "curl"), ("python", "Python")):
        lines += ["", f"# {what}", body["snippets"][name]]
    return "\n".join(lines)
