"""Writes the JSON schemas of all answers and of events into `runbook/schemas` (`make schema`)."""

from __future__ import annotations

import importlib
import json
import types
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from runbook.cli.answers import Envelope, Refusal
from runbook.cli.verbs import VERBS, verbs
from runbook.state.shapes import Event


def shapes() -> dict[str, Any]:
    """The type of each answer by the name of its verb, and that of an event."""
    found: dict[str, Any] = {"event": Event}
    for name, verb in verbs().items():
        if verb.answer:
            module, _, shape = verb.answer.partition(":")
            answer = getattr(importlib.import_module(module), shape)
            found[name] = (answer if name in VERBS else _enveloped(name, answer)) | Refusal
    return found


def _enveloped(kind: str, body: Any) -> Any:
    """The answer of a verb that a step adds, of the shape of its body."""
    fields = {"kind": Literal[kind]}
    named = TypedDict("named", fields)  # type: ignore[misc]
    return types.new_class(kind.capitalize(), (Envelope, named, body))


def schemas() -> dict[str, str]:
    """The schema of each answer as JSON text, by the name of its verb."""
    from pydantic import TypeAdapter

    found = {}
    for name, shape in shapes().items():
        schema = TypeAdapter(shape).json_schema()
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        found[name] = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
    return found


def main() -> None:
    for name, text in schemas().items():
        (Path(__file__).parents[1] / "schemas" / f"{name}.schema.json").write_text(text)


if __name__ == "__main__":
    main()
