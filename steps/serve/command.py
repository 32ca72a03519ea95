"""From a step's inputs to what is started: plain data, compared as a whole to see a change."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.steps.serve import profiles
from runbook.steps.serve.key import VARIABLE

FLAGS = (
    "tensor_parallel_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "kv_cache_memory_bytes",
    "block_size",
    "tokenizer_mode",
    "reasoning_parser",
    "tool_call_parser",
    "enable_auto_tool_choice",
    "trust_remote_code",
    "disable_custom_all_reduce",
    "enforce_eager",
    "enable_prefix_caching",
    "seed",
    "speculative_config",
    "compilation_config",
)
"""Inputs that are flags of `vllm serve` under the same name, in the order they are given."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""The model is a local folder: the server has nothing to ask of any other machine."""


def flag(name: str, value: Any) -> list[str]:
    """The arguments for one flag; none for None. An object is given as JSON."""
    option = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [option] if value else [option.replace("--", "--no-", 1)]
    if isinstance(value, dict):
        return [option, json.dumps(value, separators=(",", ":"), sort_keys=True)]
    return [option, str(value)]


def overlay(layers: list[dict[str, str]]) -> dict[str, str]:
    """Environment layers as one, later ones over earlier ones."""
    merged: dict[str, str] = {}
    for layer in layers:
        merged.update(layer)
    return merged


def effective(inputs: SimpleNamespace) -> SimpleNamespace:
    """The inputs with those of the chosen profile laid over them."""
    if inputs.profile is None:
        return inputs
    values = dict(vars(inputs))
    values["profile"], values["profile_reason"] = profiles.chosen(values)
    for name, value in inputs.profiles[values["profile"]].items():
        if name in ("env", "extra_args"):
            values[name] = values[name] + value
        elif value is not None:
            values[name] = value
    return SimpleNamespace(**values)


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
    for name in FLAGS:
        argv += flag(name, getattr(inputs, name))
    return {
        "argv": argv + inputs.extra_args,
        "env": OFFLINE | overlay(inputs.env),
        "path": inputs.path,
        "host": inputs.host,
        "port": inputs.port,
        "digests": inputs.digests,
        "supervisor": inputs.supervisor,
        "secret_env": {VARIABLE: str(key)} if key is not None else {},
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
