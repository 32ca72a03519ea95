"""The JSON schema of documents, for editors: from the models of the document and of each step.

`python -m runbook.document.schema` prints it; it is committed as
`runbook/schemas/runbook.schema.json`.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from runbook.document import registry
from runbook.document.models import INPUT_NAME, Document

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEMPLATE = {"$ref": "#/$defs/Template"}
OWN_CLASS = r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$"


def document_schema() -> dict[str, Any]:
    """The schema of a document. Below `with`, a template stands for a value of any type."""
    kinds = {name: registry.load_step(name, "").Inputs for name in registry.known_steps()}
    models: list[type[BaseModel]] = [Document, *kinds.values()]
    references, shared = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/$defs/{model}",
        by_alias=True,
    )
    definitions: dict[str, Any] = shared["$defs"]
    for schema in definitions.values():
        _drop_titles(schema)
    own = _reachable(definitions, _name(references[Document, "validation"]))
    for name in definitions.keys() - own:
        definitions[name] = _templated(definitions[name], top=True)

    document = definitions.pop(_name(references[Document, "validation"]))
    document["properties"]["inputs"]["propertyNames"] = {"pattern": INPUT_NAME}
    step = definitions["Step"]
    step["properties"]["uses"] = {
        "description": step["properties"]["uses"]["description"],
        "anyOf": [{"enum": registry.known_steps()}, {"type": "string", "pattern": OWN_CLASS}],
    }
    step["allOf"] = [
        _for_kind(kind, model, references[model, "validation"]) for kind, model in kinds.items()
    ]
    definitions["Template"] = {
        "type": "string",
        "pattern": r"\{[{%#]",
        "description": "A Jinja template: {{ inputs.x }}, {{ steps.a.outputs.b }}, {{ facts.c }}.",
    }
    return {
        "$schema": DIALECT,
        "title": "Runbook",
        **document,
        "$defs": dict(sorted(definitions.items())),
    }


def _for_kind(kind: str, model: type[BaseModel], reference: Any) -> dict[str, Any]:
    needs_with = any(field.is_required() for field in model.model_fields.values())
    return {
        "if": {"properties": {"uses": {"const": kind}}, "required": ["uses"]},
        "then": {
            "properties": {"with": reference},
            **({"required": ["with"]} if needs_with else {}),
        },
    }


def _name(reference: Any) -> str:
    return str(reference["$ref"]).removeprefix("#/$defs/")


def _reachable(definitions: dict[str, Any], name: str) -> set[str]:
    """The definitions that a definition uses, itself included."""
    found: set[str] = set()
    open_names = [name]
    while open_names:
        current = open_names.pop()
        if current not in found:
            found.add(current)
            open_names += _references(definitions[current])
    return found


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [_name(schema)] if "$ref" in schema else []
        return own + [n for value in schema.values() for n in _references(value)]
    if isinstance(schema, list):
        return [n for value in schema for n in _references(value)]
    return []


def _drop_titles(schema: Any) -> None:
    """Titles are the fields' names once more: noise in an editor."""
    if isinstance(schema, list):
        for value in schema:
            _drop_titles(value)
    elif isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for key, value in schema.items():
            if key in ("properties", "$defs"):
                for inner in value.values():
                    _drop_titles(inner)
            elif key not in ("default", "enum", "const", "examples"):
                _drop_titles(value)


def _templated(schema: dict[str, Any], top: bool = False) -> dict[str, Any]:
    """A schema in whose every place a template is allowed too."""
    inner = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in inner:
            inner[key] = {name: _templated(value) for name, value in inner[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(inner.get(key), dict):
            inner[key] = _templated(inner[key])
    if "prefixItems" in inner:
        inner["prefixItems"] = [_templated(value) for value in inner["prefixItems"]]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in inner:
            inner[key] = [_templated(value, top=True) for value in inner[key]]
    if top or not inner.keys() - {"description", "default"}:
        return inner
    notes: dict[str, Any] = {k: inner.pop(k) for k in ("description", "default") if k in inner}
    return notes | (inner if inner == {"type": "string"} else {"anyOf": [inner, TEMPLATE]})


def main() -> None:
    """Print the schema."""
    print(json.dumps(document_schema(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
