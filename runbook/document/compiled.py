"""The compiled form of a document, for type checkers: plain JSON at run time."""

from __future__ import annotations

from typing import Any, TypedDict

from runbook.protocol import Json


class Retry(TypedDict):
    attempts: int
    backoff: float
    """Seconds before the second attempt; twice as long before each further one."""


Step = TypedDict(
    "Step",
    {
        "id": str,
        "uses": str,
        "folder": str,  # of the document: what a relative `uses` counts from
        "line": int,  # in the document
        "needs": list[str],
        "with": Any,  # compiled templates, defaults filled in
        "static": bool,  # whether `with` is its own rendering
        "when": Json,  # compiled, or None
        "approve": Json,  # compiled, or None
        "always": bool,
        "timeout": float | None,  # seconds
        "stall": float | None,  # seconds
        "retry": Retry,
    },
)


class Book(TypedDict):
    name: str
    description: str
    source: str
    """The absolute path of the document."""
    digest: str
    """SHA-256 of the document's bytes."""
    version: str
    """Of this package."""
    inputs: dict[str, Any]
    """Values, nested by the dots in their names."""
    given: dict[str, Any]
    """The inputs that differ from their defaults, by their whole names."""
    declared: dict[str, Any]
    """Of each input its `type` and its `default`, None if it has none."""
    secrets: list[str]
    required: list[str]
    """Those of the secrets without which nothing runs."""
    facts: list[str]
    steps: list[Step]
