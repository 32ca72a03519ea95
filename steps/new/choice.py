"""A value of the book, and why it is that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STATED = "stated with {option}"


@dataclass(frozen=True)
class Choice:
    """A value of the book, and why it is that; `key` as the book writes it."""

    key: str
    value: Any
    why: str
