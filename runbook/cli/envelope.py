"""The envelope of every answer: plain data, one shape, for `--json` and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runbook.state.records import SCHEMA


def document(
    kind: str,
    ok: bool,
    body: Mapping[str, Any] | None = None,
    *,
    error: Mapping[str, Any] | None = None,
    next: Sequence[str] = (),
) -> dict[str, Any]:
    """An answer of the verb `kind`."""
    answer: dict[str, Any] = {"schema": SCHEMA, "kind": kind, "ok": ok, **(body or {})}
    if error is not None:
        answer["error"] = dict(error)
    answer["next"] = list(next)
    return answer
