"""Whether a value is of a JSON schema, as far as checks of constrained answers need schemas."""

from __future__ import annotations

from typing import Any

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
KNOWN = frozenset(
    {"type", "properties", "required", "enum", "items", "additionalProperties", "description"}
)


def unknown_keywords(schema: dict[str, Any]) -> set[str]:
    """Keywords that `nonconformity` would not look at."""
    inner = [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]
    return (schema.keys() - KNOWN).union(*map(unknown_keywords, inner))


def nonconformity(value: Any, schema: dict[str, Any], where: str = "it") -> str | None:
    """What of a value is not of the schema, in words; None if all is."""
    kind = schema.get("type")
    is_bool = isinstance(value, bool)
    if kind is not None and (not isinstance(value, TYPES[kind]) or is_bool != (kind == "boolean")):
        return f"{where} is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {value!r}, none of {schema['enum']}"
    if isinstance(value, list) and "items" in schema:
        faults = (nonconformity(v, schema["items"], f"{where}[{n}]") for n, v in enumerate(value))
        return next((fault for fault in faults if fault), None)
    if not isinstance(value, dict):
        return None
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where} has no {name}"
    for name, item in value.items():
        if name not in properties and schema.get("additionalProperties") is False:
            return f"{where} has a {name}"
        if name in properties and (fault := nonconformity(item, properties[name], name)):
            return fault
    return None
