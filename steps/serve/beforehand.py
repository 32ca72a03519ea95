"""What can be known before a server is started, said in words that vLLM would not find."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps import MODEL


def require_model_folder(model: Path, speculative_config: dict[str, Any] | None) -> None:
    """What vLLM would answer with a misleading message, or by asking a hub, said beforehand."""
    config = model / "config.json"
    try:
        values = json.loads(config.read_bytes())
    except FileNotFoundError as error:
        raise StepFailure(
            f"{model} is no model folder",
            code="model_missing",
            cause="it has no config.json",
            remedy=Remedy("run", ("--from", "{step}"), "weights"),
        ) from error
    except ValueError as error:
        raise StepFailure(
            f"{config} is not JSON",
            code="model_damaged",
            cause=str(error),
            remedy=Remedy("run", ("--from", "{step}"), MODEL),
        ) from error
    wants_head = speculative_config is not None and speculative_config["method"] == "mtp"
    if wants_head and not values.get("num_nextn_predict_layers"):
        raise StepFailure(
            "the model has no MTP head, though speculation by `mtp` is configured",
            code="no_mtp_head",
            cause="num_nextn_predict_layers of its config.json is 0 or missing",
            remedy=Remedy(
                "run", ("--from", "{step}"), MODEL, "{command}, or set `speculative_config: null`"
            ),
            where=str(config),
        )


def require_program(vllm: Path) -> None:
    if not os.access(vllm, os.X_OK):
        raise StepFailure(
            f"{vllm} cannot be run",
            code="vllm_missing",
            cause="there is no such program",
            remedy=Remedy("run", ("--from", "{step}"), "vllm"),
        )
