"""What one does next with what is served: ask it, stop it, start it again."""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runbook.cli import shell
from runbook.cli.target import Target
from runbook.document.compile import BOOKS

LINGER = Path("/var/lib/systemd/linger")
"""Has a file for each user whose services start at boot (loginctl(1))."""
QUESTION = "Say hello in five words."


def served(target: Target, outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The endpoint of the last step that has one among its `outputs`, what was measured of it, and
    the commands that ask it, end it and start it anew; None if nothing is served."""
    step = next((name for name in reversed([*outputs]) if outputs[name].get("endpoint")), None)
    if step is None:
        return None
    unit = outputs[step].get("unit")
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
        "unit": unit,
        "at_boot": _at_boot(target) if unit is None else _linger(),
    }


def _linger() -> str | None:
    """What lets a unit of the user's systemd start at boot; None if it does."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return "loginctl enable-linger"
    return None if (LINGER / name).exists() else "loginctl enable-linger"


def _at_boot(target: Target) -> str:
    """A line to paste into a shell, after which cron starts it at boot: with nothing of this
    environment but where what is shared lies, and from any folder (crontab(5))."""
    program = Path(sys.executable).with_name("runbook")
    words = [str(program)] if program.exists() else [sys.executable, "-P", "-m", "runbook"]
    source = Path(target.book["source"])
    book = source.stem if source.parent == BOOKS else str(source)
    words += ["run", book, "--workspace", str(target.workspace.root)]
    kept = [n for n in ("RUNBOOK_CACHE", "XDG_CACHE_HOME") if os.environ.get(n)]
    words = [*(["env", *(f"{n}={os.environ[n]}" for n in kept)] if kept else []), *words]
    entry = "@reboot " + shell.join(words).replace("%", "\\%")
    return f"(crontab -l 2>/dev/null; printf '%s\\n' {shell.quote(entry)}) | crontab -"


def of_workspace(target: Target) -> dict[str, Any] | None:
    """What is served by the records of the workspace."""
    records = {step["id"]: target.workspace.checkpoint(step["id"]) for step in target.book["steps"]}
    return served(target, {name: r["outputs"] for name, r in records.items() if r is not None})


def _request(endpoint: str, model: str) -> str:
    """A request to paste into a shell."""
    asked = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    url = f"{endpoint}/chat/completions"
    kind = "Content-Type: application/json"
    return shell.join(["curl", "-s", url, "-H", kind, "-d", json.dumps(asked)])


def _measured(outputs: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    found = [o[name] for o in outputs.values() if isinstance(o.get(name), (int, float))]
    return found[-1] if found else None
