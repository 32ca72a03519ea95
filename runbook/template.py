"""Templates in documents, compiled to plain JSON so that most need no jinja2 at run time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbook.protocol import Json


def compile_value(value: Json) -> Json:
    raise NotImplementedError


def compile_condition(when: str | bool) -> Json:
    raise NotImplementedError


def render(compiled: Json, scope: Mapping[str, Any]) -> Json:
    raise NotImplementedError


def evaluate(compiled: Json, scope: Mapping[str, Any]) -> bool:
    raise NotImplementedError
