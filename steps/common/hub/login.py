"""Who we are to a hub."""

from __future__ import annotations

import os

from runbook.protocol import Context, PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.hub import refusals

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def token(ctx: Context) -> str | None:
    """The declared secret HF_TOKEN, else the login of the hub's own tools."""
    try:
        declared = ctx.secret("HF_TOKEN")
    except StepFailure as failure:
        if failure.code != "undeclared_secret":
            raise
        declared = None
    return declared or login_token()


def login_token() -> str | None:
    """The token of `hf auth login`. Not the one of the environment: that is a secret, which the
    document must declare so that it is kept out of logs."""
    if given := os.environ.get("HF_ENDPOINT"):
        refusals.require_address(given, "HF_ENDPOINT")
    hidden = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        import huggingface_hub  # reads its settings here

        return huggingface_hub.get_token()
    except ValueError as error:
        raise PreconditionNotMet(
            "a setting of huggingface_hub in the environment is not of its form",
            code="bad_environment",
            cause=str(error),
            remedy=Remedy("run", text="correct the variable HF_..., then {command}"),
        ) from error
    finally:
        os.environ.update(hidden)
