"""What a book serves, for those who ask it: the step that does, whether its server is healthy, and
the key that it may want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.remedy import Remedy


def step_of(name: str, steps: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The last step of a book that serves. Raises PreconditionNotMet if none does."""
    found = [step for step in steps if step["uses"] == "serve"]
    if not found:
        raise PreconditionNotMet(
            f"{name} serves nothing",
            code="not_served",
            cause="it has no step of the kind `serve`",
            remedy="name a book that serves a model",
        )
    return found[-1]


def not_served(cause: str) -> PreconditionNotMet:
    return PreconditionNotMet(
        "no model is served", code="not_served", cause=cause, remedy=Remedy("run")
    )


def require_healthy(url: str) -> None:
    """Raises PreconditionNotMet unless the server of an endpoint says that it is healthy."""
    from runbook.steps.common import endpoint

    address = urlsplit(url)
    state = endpoint.health(address.hostname or "", address.port or 80)
    if state != "healthy":
        raise not_served(f"its server is {state} at /health")


def api_key(file: str | None, failure: type[StepFailure] = PreconditionNotMet) -> str | None:
    """The key that a file holds; None without a file. Raises `failure` if it cannot be read."""
    try:
        return Path(file).read_text().strip() if file is not None else None
    except OSError as error:
        raise failure(
            "the file of the API key cannot be read",
            code="api_key_missing",
            cause=str(error),
            remedy=Remedy("run", ("--from", "{step}"), "serve"),
            where=str(file),
        ) from error
