"""Templates in documents, compiled to plain JSON so that most need no jinja2 at run time.

Compiled, a value is what it was, but for strings that hold a template:

    {"$ref": ["steps", "build", "outputs", "python"]}   nothing but one dotted name: keeps its type
    {"$join": ["--jobs=", ["inputs", "jobs"]]}          text around dotted names
    {"$jinja": "{{ inputs.jobs // 2 }}"}                anything else

and for mappings' own keys that start with `$`, which get a second one. Conditions (`when:`) are
bare expressions and add

    {"$not": ["facts", "gpus"]}
    {"$equal": [["steps", "preflight", "outputs", "variant"], "v4"]}, {"$differ": [..., ...]}

A sole `{{ expression }}` gives a value of its own type, text around it makes it text: booleans as
`true` and `false`, mappings and lists as JSON; null has no text and is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runbook.document.words import NoTextError, as_text, describe
from runbook.protocol import Json, StepFailure

LONGEST_SHOWN = 200
"""Characters of a template in a message."""
OPERATORS = frozenset(("$ref", "$join", "$jinja", "$not", "$equal", "$differ"))

_NAME = r"(?:inputs|facts|workspace|steps|check)(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
_REFERENCE = re.compile(r"\{\{\s*(" + _NAME + r")\s*\}\}", re.ASCII)
_MARKERS = re.compile(r"\{[{%#]")
_CONDITION = re.compile(r"\s*(not\s+)?(" + _NAME + r")\s*", re.ASCII)
_COMPARISON = re.compile(
    r"\s*("
    + _NAME
    + r")\s*([=!]=)\s*('[^'\\\r\n]*'|\"[^\"\\\r\n]*\"|0|[1-9]\d{0,14}|true|false)\s*",
    re.ASCII,
)


def is_template(value: Json) -> bool:
    """Whether a value of a document is text that holds a template."""
    return isinstance(value, str) and "{" in value and _MARKERS.search(value) is not None


def compile_value(value: Json) -> Json:
    """Compile a value of a document, and all that is in it."""
    if isinstance(value, str):
        return _compile_text(value) if is_template(value) else value
    if isinstance(value, dict):
        return {quote_key(k): compile_value(v) for k, v in value.items()}
    if isinstance(value, list):
        return [compile_value(v) for v in value]
    return value


def is_static(compiled: Json) -> bool:
    """Whether a compiled value is its own rendering."""
    if isinstance(compiled, dict):
        return not any(k.startswith("$") for k in compiled) and all(
            map(is_static, compiled.values())
        )
    return not isinstance(compiled, list) or all(map(is_static, compiled))


def quote_key(key: str) -> str:
    """A key of a document's mapping, such that no operator is read into it."""
    return "$" + key if key.startswith("$") else key


def quote(value: Json) -> Json:
    """The compiled form of a value in which nothing is a template, whatever it looks like."""
    if isinstance(value, dict):
        return {quote_key(k): quote(v) for k, v in value.items()}
    if isinstance(value, list):
        return [quote(v) for v in value]
    return value


def compile_condition(when: str | bool | None) -> Json:
    """Compile a `when:`: None and booleans stay, text is a bare Jinja expression."""
    if not isinstance(when, str):
        return when
    if match := _CONDITION.fullmatch(when):
        path: list[Json] = list(match[2].split("."))
        return {"$not": path} if match[1] else {"$ref": path}
    if match := _COMPARISON.fullmatch(when):
        literal = match[3]
        other: Json = literal[1:-1] if literal[0] in "'\"" else json.loads(literal)
        return {"$equal" if match[2] == "==" else "$differ": [list(match[1].split(".")), other]}
    return {"$jinja": "{{ " + when + " }}"}


def _compile_text(text: str) -> Json:
    if match := _REFERENCE.fullmatch(text):
        return {"$ref": list(match[1].split("."))}
    parts: list[Json] = []
    end = 0
    for match in _REFERENCE.finditer(text):
        parts += (text[end : match.start()], list(match[1].split(".")))
        end = match.end()
    parts.append(text[end:])
    literal = [part for part in parts if isinstance(part, str)]
    # jinja2 would read the brace before a reference as part of its opening, and rewrites "\r".
    if any(_MARKERS.search(t) or "\r" in t for t in literal) or any(
        t.endswith("{") for t in literal[:-1]
    ):
        return {"$jinja": text}
    return {"$join": [part for part in parts if part != ""]}


def operator(compiled: Json) -> str:
    """The operator of a compiled value, or an empty string if it is plain."""
    if isinstance(compiled, dict) and len(compiled) == 1:
        (key,) = compiled
        if key in OPERATORS:
            return key
    return ""


def render(compiled: Json, scope: Mapping[str, Any]) -> Json:
    """The value of a compiled value in a scope of plain data. StepFailure if a name is missing."""
    if isinstance(compiled, dict):
        if key := operator(compiled):
            value: Json = _OPERATIONS[key](compiled[key], scope)
            return value
        return {(k[1:] if k.startswith("$") else k): render(v, scope) for k, v in compiled.items()}
    if isinstance(compiled, list):
        return [render(v, scope) for v in compiled]
    return compiled


def known(compiled: Json, scope: Mapping[str, Any], path: str = "") -> tuple[Json, set[str]]:
    """What can be rendered of a value before all names have a value, and the dotted paths of the
    members that cannot be, which are left out. StepFailure if that is the whole of it."""
    unknown: set[str] = set()

    def member(value: Json, key: str) -> Iterator[Json]:
        below = f"{path}.{key}" if path else key
        try:
            given, missing = known(value, scope, below)
        except StepFailure:
            unknown.add(below)
            return
        unknown.update(missing)
        yield given

    if isinstance(compiled, dict) and not operator(compiled):
        plain = ((k[1:] if k.startswith("$") else k, v) for k, v in compiled.items())
        return {k: given for k, v in plain for given in member(v, k)}, unknown
    if isinstance(compiled, list):
        return [given for i, v in enumerate(compiled) for given in member(v, str(i))], unknown
    return render(compiled, scope), unknown


def evaluate(compiled: Json, scope: Mapping[str, Any]) -> bool:
    """Whether a compiled condition holds; none at all does."""
    return True if compiled is None else bool(render(compiled, scope))


def _look_up(path: list[str], scope: Mapping[str, Any]) -> Any:
    value: Any = scope
    for depth, name in enumerate(path):
        try:
            if not isinstance(value, (dict, Mapping)):
                raise KeyError(name)
            value = value[name]
        except KeyError:
            raise _missing(path, depth, value) from None
    return value


def _missing(path: list[str], depth: int, value: Any) -> StepFailure:
    holder = ".".join(path[:depth])
    if depth == 0:
        cause = f"nothing is named `{path[0]}` here"
    elif isinstance(value, Mapping):
        there = ", ".join(map(str, value)) or "nothing"
        cause = f"`{holder}` has no `{path[depth]}`; it has {there}"
    else:
        cause = f"`{holder}` is {describe(value)} and has no `{path[depth]}`"
    return StepFailure(
        f"`{'.'.join(path)}` is not known",
        code="template_undefined",
        cause=cause,
        remedy="correct the name in the document, or guard the step with `when:`",
    )


def _no_text(what: str) -> StepFailure:
    return StepFailure(
        f"{what} is null and stands inside text",
        code="template_null",
        cause="null has no text",
        remedy="give it a value, or write `{{ name or 'something' }}`",
    )


def _reference(path: list[str], scope: Mapping[str, Any]) -> Json:
    value: Json = _look_up(path, scope)
    return value


def _join(parts: list[str | list[str]], scope: Mapping[str, Any]) -> Json:
    text = []
    for part in parts:
        if isinstance(part, str):
            text.append(part)
            continue
        try:
            text.append(as_text(_look_up(part, scope)))
        except NoTextError:
            raise _no_text(f"`{'.'.join(part)}`") from None
    return "".join(text)


def _not(path: list[str], scope: Mapping[str, Any]) -> Json:
    return not _look_up(path, scope)


def _equal(operands: list[Any], scope: Mapping[str, Any]) -> Json:
    return bool(_look_up(operands[0], scope) == operands[1])


def _differ(operands: list[Any], scope: Mapping[str, Any]) -> Json:
    return bool(_look_up(operands[0], scope) != operands[1])


def _jinja(source: str, scope: Mapping[str, Any]) -> Json:
    from runbook.document import jinja

    try:
        return jinja.render(source, scope)
    except Exception as error:  # an expression of the document's author can fail in any way
        raise _failed(source, error) from error


def _failed(source: str, error: Exception) -> StepFailure:
    from runbook.document.confine import Excess, Relayed

    kind = error.kind if isinstance(error, Relayed) else type(error).__name__
    message = getattr(error, "message", None) or str(error)
    template = repr(source if len(source) <= LONGEST_SHOWN else source[:LONGEST_SHOWN] + "...")
    if kind == NoTextError.__name__:
        return _no_text(f"a value in {template}")
    if kind == "UndefinedError":
        return StepFailure(
            f"a name in {template} is not known",
            code="template_undefined",
            cause=message,
            remedy="correct the name in the document, or guard the step with `when:`",
        )
    if isinstance(error, Excess):
        return StepFailure(
            f"the template {template} is too much to evaluate",
            code="template_excess",
            cause=message,
            remedy="let it make less: a template is for names and paths, a step for data",
        )
    return StepFailure(
        f"the template {template} cannot be evaluated",
        code="template_failed",
        cause=f"{kind}: {message}",
        remedy="correct the template in the document",
    )


_OPERATIONS: Mapping[str, Any] = {
    "$ref": _reference,
    "$join": _join,
    "$jinja": _jinja,
    "$not": _not,
    "$equal": _equal,
    "$differ": _differ,
}
