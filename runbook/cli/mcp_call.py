"""A verb called by the server of the Model Context Protocol: by the program itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

PATIENCE = 600
"""Seconds after which any other call is given up; a check of 146 GB read whole takes minutes."""


async def call(
    verb: str,
    book: str | None,
    workspace: str | None,
    *arguments: str,
    steps: Sequence[str] = (),
    text: str | None = None,
    form: str = "--brief",
) -> dict[str, Any]:
    """The document that a verb answers with."""
    import anyio

    place = ["--workspace", workspace] if workspace is not None else []
    words = [verb, *([book] if book is not None else []), *steps, *place, *arguments, form]
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [sys.executable, "-m", "runbook", *words],
            input=(text or "").encode(),
            check=False,
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return {"exit_code": done.returncode, **answer}
