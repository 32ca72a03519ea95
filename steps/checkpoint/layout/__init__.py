"""The tensors that an architecture asks for: names, shapes and dtypes, derived from config.json.

Two families are known. DeepSeek-V4 by its own flat names (`layers.N.*`, `mtp.N.*`), with an MTP
block or the stages of a DSpark draft; DeepSeek-V3 by the names of its Hugging Face release
(`model.layers.N.*`, the MTP block as layer `num_hidden_layers`). Shapes are [out, in].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from runbook.steps.checkpoint.layout import deepseek_v3, deepseek_v4
from runbook.steps.checkpoint.layout.fields import (
    ConfigError,
    Fields,
    MissingField,
    UnknownArchitecture,
    names_of,
)
from runbook.steps.checkpoint.layout.model import Kind, Layout, Linear, Plain, Role

LEAST_LIMIT = 300_000
"""Tensors of a layout, if its checkpoint has no more: several times what the largest known has."""


def layout(config: Mapping[str, Any], names: Collection[str] = ()) -> Layout:
    """The layout of the model that a config.json describes. `names` are the tensors that there
    are: a layout of many more is refused, whatever the config counts.

    Raises `UnknownArchitecture` or `ConfigError`, of which `MissingField` is one.
    """
    kinds = names_of(config)
    limit = max(LEAST_LIMIT, 2 * len(names))
    if kinds & {"deepseek_v4", "DeepseekV4ForCausalLM"}:
        return deepseek_v4.layout(Fields(config), limit, names)
    if kinds & {"deepseek_v3", "DeepseekV3ForCausalLM"}:
        return deepseek_v3.layout(Fields(config), limit)
    raise UnknownArchitecture(kinds)


def mtp_count(config: Mapping[str, Any]) -> int:
    """How many MTP blocks the config declares."""
    return Fields(config).count("num_nextn_predict_layers")


__all__ = [
    "ConfigError",
    "Kind",
    "Layout",
    "Linear",
    "MissingField",
    "Plain",
    "Role",
    "UnknownArchitecture",
    "layout",
    "mtp_count",
]
