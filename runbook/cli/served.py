"""What one does next with what is served: ask it, stop it, start it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from runbook.cli.target import Target

QUESTION = "Say hello in five words."


def served(target: Target, outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The endpoint of the last step that has one among its `outputs`, what was measured of it, and
    the commands that ask it, end it and start it anew; None if nothing is served."""
    step = next((name for name in reversed([*outputs]) if outputs[name].get("endpoint")), None)
    if step is None:
        return None
    endpoint, model = outputs[step]["endpoint"], outputs[step].get("model")
    return {
        "step": step,
        "endpoint": endpoint,
        "model": model,
        "request": _request(endpoint, model) if isinstance(model, str) else None,
        "tokens_per_second": _measured(outputs, "decode_tokens_per_second"),
        "acceptance": _measured(outputs, "acceptance"),
        "stop": target.command("destroy", step, "--yes"),
        "restart": target.command("run", "--force", step),
    }


def of_workspace(target: Target) -> dict[str, Any] | None:
    """What is served by the records of the workspace."""
    records = {step["id"]: target.workspace.checkpoint(step["id"]) for step in target.book["steps"]}
    return served(target, {name: r["outputs"] for name, r in records.items() if r is not None})


def _request(endpoint: str, model: str) -> str:
    """A request to paste into a shell."""
    asked = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    url = f"{endpoint}/chat/completions"
    kind = "Content-Type: application/json"
    return shlex.join(["curl", "-s", url, "-H", kind, "-d", json.dumps(asked)])


def _measured(outputs: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    found = [o[name] for o in outputs.values() if isinstance(o.get(name), (int, float))]
    return found[-1] if found else None
