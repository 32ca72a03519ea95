"""From a step's inputs to what is started: plain data, compared as a whole to see a change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.steps.common.flags.command import OFFLINE, arguments, overlay
from runbook.steps.serve.key import VARIABLE


def spec(inputs: SimpleNamespace, key: Path | None = None) -> dict[str, Any]:
    """{argv, env, path, ...}: everything that the server is started with, from effective inputs
    and the file of its API key."""
    argv = [
        inputs.vllm,
        "serve",
        inputs.model,
        "--served-model-name",
        inputs.served_model_name,
        "--host",
        inputs.host,
        "--port",
        str(inputs.port),
    ]
    argv += arguments(inputs) + inputs.extra_args
    return {
        "argv": argv,
        "env": OFFLINE | overlay(inputs.env),
        "path": inputs.path,
        "host": inputs.host,
        "port": inputs.port,
        "digests": inputs.digests,
        "supervisor": inputs.supervisor,
        "secret_env": {VARIABLE: str(key)} if key is not None else {},
        "trusted_code": inputs.trusted_code,
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of two specs differs, in words: names, not values, which may be long."""
    found = []
    if old["argv"] != new["argv"]:
        changed = {*_options(old["argv"]), *_options(new["argv"])}
        changed -= set(_options(old["argv"])) & set(_options(new["argv"]))
        names = sorted({option for option, _ in changed})
        found += names or ["the order of its arguments"]
    for key in ("env", "digests", "secret_env"):
        one, other = old.get(key, {}), new.get(key, {})
        found += sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
    found += [k for k in ("path", "supervisor") if old.get(k) != new.get(k)]
    return found


def _options(argv: list[str]) -> list[tuple[str, str]]:
    """Arguments as (option, value) pairs; those before the first option by their position."""
    pairs: list[tuple[str, str]] = []
    for n, word in enumerate(argv):
        if word.startswith("--"):
            pairs.append((word, ""))
        elif pairs and not pairs[-1][1]:
            pairs[-1] = (pairs[-1][0], word)
        else:
            pairs.append((("program", "verb", "model")[n] if n < 3 else word, word))
    return pairs
