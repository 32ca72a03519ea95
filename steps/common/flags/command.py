"""From the flags of a step's inputs to the arguments of `vllm serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from runbook.steps.common.flags import profiles

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
    """The inputs over the shared flags, the chosen profile's over both, and those of
    `profile_file` over all. Raises PreconditionNotMet if that is none."""
    values, _ = profiles.spread(vars(inputs))
    if inputs.profile is not None:
        values["profile"], values["profile_reason"] = profiles.chosen(values)
        profiles.lay(values, inputs.profiles[values["profile"]])
    if (file := values.get("profile_file")) is not None:
        from runbook.steps.common.flags import profile_file

        told = profile_file.read(file)
        profiles.lay(values, profile_file.flags_of(told))
        values["figures"] = told.get("figures") or values.get("figures")
    return SimpleNamespace(**values)


def effective_of(given: Mapping[str, Any]) -> SimpleNamespace:
    """The same of a step's `with` as a book has it, in which not everything need be said."""
    nothing: dict[str, Any] = {"profile": None, "profiles": {}, "flags": None, "profile_file": None}
    return effective(SimpleNamespace(**nothing | {"env": [], "extra_args": []} | dict(given)))


def arguments(inputs: SimpleNamespace) -> list[str]:
    """All flags as arguments, of effective inputs."""
    return [word for name in FLAGS for word in flag(name, getattr(inputs, name))]
