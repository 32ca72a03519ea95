"""Pydantic's errors as problems of a document: where, in its author's words, what was meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, cast

from pydantic import BaseModel

from runbook.document import durations
from runbook.document.errors import alternatives, nearest
from runbook.document.fields import keys_of, models_at
from runbook.document.models import BOOK_NAME, SECRET_NAME, STEP_ID
from runbook.document.nodes import Node, Path
from runbook.document.source import Source
from runbook.document.words import describe, shown
from runbook.protocol import Json

_EXPECTED = {
    "string_type": "text",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "`true` or `false`",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
    "list": "a list",
}
_PATTERNS = {
    STEP_ID: "lower-case letters, digits and underscores, a letter first",
    BOOK_NAME: "lower-case letters, digits, `-`, `_` and `.`",
    SECRET_NAME: "the name of an environment variable",
}
MOST = 100
"""Places of one mapping that are told of: more are of one kind, and nobody reads them."""
_MANY = 12  # more names than that are a list that nobody reads


def report(
    source: Source,
    base: Path,
    errors: Iterable[Mapping[str, Any]],
    model: type[BaseModel],
    data: Json,
    undecided: Callable[[Path, str], bool] = lambda path, kind: False,
) -> None:
    """Report the errors of a validation of what stands at `base` against `model`.

    `data` is what was validated: the document's values, templates evaluated where possible.
    `undecided(path, kind)` tells of errors that only say that a template is not yet a value.
    """
    root = source.root.at(base)
    found: dict[Path, list[tuple[Mapping[str, Any], bool]]] = {}
    for error in errors:
        path, in_union = _path(root, error)
        node = root.at(path[:-1] if error["type"] in ("missing", "extra_forbidden") else path)
        if not node.broken and not undecided(path, error["type"]):
            found.setdefault(path, []).append((error, in_union))
    for path, group in islice(found.items(), MOST):
        unions = [error for error, in_union in group if in_union]
        deeper = any(
            len(other) > len(path) and other[: len(path)] == path and any(u for _, u in more)
            for other, more in found.items()
        )
        if unions and deeper:  # another branch of the union got further: it is the one meant
            unions = []
        elif unions:
            _report_union(source, base, path, unions, model, data)
        for error, in_union in group:
            if not in_union:
                _report(source, base, path, error, model, data)


def _path(root: Node, error: Mapping[str, Any]) -> tuple[Path, bool]:
    """The path in the document, and whether pydantic's had names of union branches in it."""
    path: list[str | int] = []
    node: Node | None = root
    in_union = False
    location = error["loc"]
    for depth, name in enumerate(location):
        inner = node.child(name) if node is not None else None
        last = depth == len(location) - 1
        if inner is not None:
            path.append(name)
            node = inner
        elif last and error["type"] in ("missing", "extra_forbidden"):
            path.append(name)
        else:
            in_union = True
    return tuple(path), in_union


def _report(
    source: Source,
    base: Path,
    path: Path,
    error: Mapping[str, Any],
    model: type[BaseModel],
    data: Json,
) -> None:
    kind = error["type"]
    node = source.root.at((*base, *path))
    full = (*base, *path)
    if kind == "missing":
        source.report(node.place, full, "missing_key", f"the key `{path[-1]}` is missing")
    elif kind == "extra_forbidden":
        holder = source.root.at((*base, *path[:-1]))
        known = [k for m in models_at(model, path[:-1]) for k in keys_of(m)]
        source.report(
            holder.keys.get(str(path[-1]), node.place),
            full,
            "unknown_key",
            f"unknown key `{path[-1]}`",
            alternatives(known) if 0 < len(known) <= _MANY else "",
            nearest(str(path[-1]), known),
        )
    else:
        value = _value(data, path)
        code, message, expected, suggestion = _words(error, value)
        if isinstance(node.value, str) and value != node.value:
            message += f" from `{node.value}`"
        source.report(node.place, full, code, message, expected, suggestion)


def _report_union(
    source: Source,
    base: Path,
    path: Path,
    errors: list[Mapping[str, Any]],
    model: type[BaseModel],
    data: Json,
) -> None:
    if len(errors) == 1 or any(e["type"] in ("missing", "extra_forbidden") for e in errors):
        for error in errors:
            _report(source, base, path, error, model, data)
        return
    node = source.root.at((*base, *path))
    words = [_words(error, _value(data, path)) for error in errors]
    expected = " or ".join(dict.fromkeys(w[2] for w in words if w[2]))
    code, message, _, suggestion = words[0]
    source.report(node.place, (*base, *path), code, message, expected, suggestion)


def _value(data: Json, path: Path) -> Json:
    value: Any = data
    for name in path:
        value = value[name]
    return cast(Json, value)


def _words(error: Mapping[str, Any], value: Json) -> tuple[str, str, str, str]:
    """Code, message, expectation and suggestion for a value that is wrong in itself."""
    kind, text, context = error["type"], error["msg"], error.get("ctx", {})
    got = f"got {describe(value)}{shown(value)}"
    if kind == "bool_type" and value in ("true", "false"):
        return "wrong_type", got, "`true` or `false` without quotes", ""
    if kind == "list_type" and isinstance(value, str) and value.isidentifier():
        return "wrong_type", got, "a list", f"[{value}]"
    if kind in _EXPECTED:
        return "wrong_type", got, _EXPECTED[kind], ""
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = nearest(value, choices) if isinstance(value, str) else ""
        expected = alternatives(choices) if choices else f"the number `{context['expected']}`"
        return "not_allowed", got, expected, near
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        expected = _PATTERNS.get(pattern, f"text that matches {pattern}")
        return "wrong_form", got, expected, _in_form(pattern, value)
    if kind == "too_short":
        count = context["min_length"]
        return "wrong_value", got, f"at least {count} item{'s' if count > 1 else ''}", ""
    if kind in ("value_error", "assertion_error"):
        message = str(context.get("error", text))
        expected = durations.EXPECTED if "duration" in message else ""
        return "wrong_value", message, expected, ""
    if text.startswith("Input should be "):
        return "wrong_value", got, text.removeprefix("Input should be "), ""
    return "wrong_value", text[:1].lower() + text[1:], "", ""


def _in_form(pattern: str, value: Any) -> str:
    """A name as it would be allowed."""
    joint = {STEP_ID: "_", BOOK_NAME: "-"}.get(pattern)
    if joint is None or not isinstance(value, str):
        return ""
    fixed = re.sub(r"[^a-z0-9_]+", joint, value.lower()).strip(joint)
    return fixed if re.fullmatch(pattern, fixed) else ""
