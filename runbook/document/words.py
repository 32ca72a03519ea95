"""Values in words: what kind of value one is, and how it stands inside text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runbook.redact import without_password


def describe(value: Any) -> str:
    """What kind of value this is, in the words of a document's author."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a {type(value).__name__}"


class NoTextError(Exception):
    """A null stands inside text."""


def as_text(value: Any) -> str:
    """A value inside text."""
    if isinstance(value, str):
        return value
    if value is None:
        raise NoTextError
    if isinstance(value, (bool, Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def shown(value: Any) -> str:
    """A scalar as it is shown in a message, cut if long, without the logins of URLs."""
    if value is None or isinstance(value, (dict, list)):
        return " without items" if value in ([], {}) else ""
    text = without_password(value, "***@") if isinstance(value, str) else json.dumps(value)
    return f" `{text if len(text) <= 60 else text[:57] + '...'}`"
