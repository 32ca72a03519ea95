"""The values of a document's inputs: from `--set`, the environment, or the document."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbook.document.errors import Problem, alternatives, nearest
from runbook.document.models import Input
from runbook.document.words import shown
from runbook.files import home
from runbook.protocol import Json

ENVIRONMENT = "RUNBOOK_"
RESERVED = ("RUNBOOK_ATTEMPT", "RUNBOOK_CACHE", "RUNBOOK_GPTQ_NATIVE", "RUNBOOK_WORKSPACE")


@dataclass
class Resolved:
    """Input values, and what of the surroundings was read to find them."""

    values: dict[str, Json] = field(default_factory=dict)
    unset: set[str] = field(default_factory=set)
    environment: dict[str, str | None] = field(default_factory=dict)
    folder: str | None = None
    given: dict[str, Json] = field(default_factory=dict)
    """Those that differ from their defaults."""
    problems: list[Problem] = field(default_factory=list)

    def nested(self) -> dict[str, Any]:
        """The values as templates see them: `build.jobs` below `build`."""
        scope: dict[str, Any] = {}
        for name, value in self.values.items():
            *outer, last = name.split(".")
            holder = scope
            for part in outer:
                holder = holder.setdefault(part, {})
            holder[last] = value
        return scope


def variable(name: str) -> str:
    """The environment variable of an input: RUNBOOK_BUILD_JOBS for build.jobs."""
    return ENVIRONMENT + name.upper().replace(".", "_")


def resolve(
    declared: Mapping[str, Input],
    secrets: Sequence[str],
    sets: Sequence[str],
    env: Mapping[str, str],
    recorded: Mapping[str, str] | None = None,
) -> Resolved:
    """Find each input's value: of `sets`, the environment, what was `recorded` of an earlier
    command, the default. Inputs that have none are in `unset`. Names of secrets are refused among
    `sets`."""
    recorded = recorded or {}
    resolved = Resolved()
    given = _parse_sets(declared, secrets, sets, resolved)
    for name, spec in declared.items():
        key = variable(name)
        resolved.environment[key] = env.get(key)
        if name in given:
            _take(resolved, name, spec, given[name], f"--set {name}", env)
        elif env.get(key):
            _take(resolved, name, spec, env[key], f"environment variable {key}", env)
        elif name in recorded:
            origin = f"recorded in the workspace (--unset {name} removes it)"
            _take(resolved, name, spec, recorded[name], origin, env)
        elif "default" in spec.model_fields_set:
            resolved.values[name] = _expand(spec, spec.default, resolved, env)
        else:
            resolved.unset.add(name)
        if name in resolved.values:
            default = _expand(spec, spec.default, resolved, env)
            if "default" not in spec.model_fields_set or resolved.values[name] != default:
                resolved.given[name] = resolved.values[name]
    return resolved


def _parse_sets(
    declared: Mapping[str, Input],
    secrets: Sequence[str],
    sets: Sequence[str],
    resolved: Resolved,
) -> dict[str, str]:
    given: dict[str, str] = {}

    def wrong(what: str, code: str, message: str, expected: str = "", near: str = "") -> None:
        resolved.problems.append(Problem(what, 0, 0, "", code, message, expected, near))

    secret_names = {secret.lower(): secret for secret in secrets}
    for text in sets:
        name, equals, value = text.partition("=")
        name = name.strip()
        if name.lower() in secret_names:  # its value must appear nowhere, so `text` is not shown
            secret = secret_names[name.lower()]
            message = f"{secret} is a secret and is only read from the environment"
            wrong(f"--set {secret}", "secret_set", message, f"{secret} in the environment")
        elif not equals:
            wrong(f"--set {name}", "set_form", "there is no `=`", "--set NAME=VALUE")
        elif name not in declared:
            known = list(declared)
            expected = alternatives(known) if known else "none: the document has no inputs"
            wrong(
                f"--set {name}",
                "unknown_input",
                f"there is no input `{name}`",
                expected,
                nearest(name, known),
            )
        else:
            given[name] = value
    return given


def _take(
    resolved: Resolved, name: str, spec: Input, text: str, origin: str, env: Mapping[str, str]
) -> None:
    try:
        value = _PARSERS[spec.type](text)
    except ValueError as error:
        resolved.problems.append(
            Problem(origin, 0, 0, f"inputs.{name}", "wrong_type", f"got{shown(text)}", str(error))
        )
        return
    if spec.enum is not None and value not in spec.enum:
        choices = [as_choice(c) for c in spec.enum]
        resolved.problems.append(
            Problem(
                origin,
                0,
                0,
                f"inputs.{name}",
                "not_allowed",
                f"{shown(text).strip()} is not one of the choices",
                alternatives(choices),
                nearest(text, choices),
            )
        )
        return
    value = _expand(spec, value, resolved, env)
    if spec.type == "path" and isinstance(value, str) and not Path(value).is_absolute():
        resolved.folder = str(Path.cwd())
        value = str(Path(resolved.folder, value))
    resolved.values[name] = value


def _expand(spec: Input, value: Json, resolved: Resolved, env: Mapping[str, str]) -> Json:
    if spec.type == "path" and isinstance(value, str) and (value == "~" or value[:2] == "~/"):
        resolved.environment["HOME"] = env.get("HOME")
        return (env.get("HOME") or str(home())) + value[1:]
    return value


def as_choice(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_given(value: Json) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, list) and value and not any(_alone(item) for item in value):
        return ",".join(map(str, value))
    return as_choice(value)


def _alone(item: Json) -> bool:
    """Whether an item of a list can only be given in JSON."""
    text = str(item)
    return "," in text or text != text.strip() or text[:1] in ("", "[")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return int(value) if value.is_integer() and text.lstrip("+-").isdigit() else value


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("`true` or `false`")
    return text == "true"


def _path(text: str) -> str:
    if not text:
        raise ValueError("a path")
    return text


def _list(text: str) -> list[Json]:
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",")] if text.strip() else []
    try:
        value = json.loads(text)
    except (RecursionError, ValueError):
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of texts: a,b,c or a JSON list")
    return list(value)


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "string": str,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "path": _path,
    "list": _list,
}


def type_problem(spec: Input, value: Json) -> str:
    """What a literal of the document should have been for its input's type, or empty."""
    fits = {
        "string": isinstance(value, str),
        "path": isinstance(value, str) and value != "",
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "boolean": isinstance(value, bool),
        "list": isinstance(value, list) and all(isinstance(item, str) for item in value),
    }
    words = {
        "string": "text (quote it)" if not isinstance(value, (dict, list)) else "text",
        "path": "a path",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "`true` or `false`",
        "list": "a list of texts",
    }
    return "" if fits[spec.type] else words[spec.type]
