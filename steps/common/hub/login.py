"""Who we are to a hub."""

from __future__ import annotations

import os

from runbook.protocol import Context, StepFailure

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
    import huggingface_hub

    hidden = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        return huggingface_hub.get_token()
    finally:
        os.environ.update(hidden)
