"""From a book's name to its compiled form, by way of a cache that needs none of the parsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def compile_book(
    book: str | None,
    sets: Sequence[str],
    cache_dir: Path | None,
    env: Mapping[str, str],
) -> dict[str, Any]:
    """The compiled form of a document (plain JSON)."""
    raise NotImplementedError
