"""The config of a model with fewer layers: every kind of layer is kept, every width the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from runbook.steps.checkpoint.layout import MissingField


def least_layers(config: Mapping[str, Any]) -> int:
    """The fewest first layers that hold each kind of layer of the model: kinds differ in the
    compression of their attention, and in how their experts are chosen or whether there are any."""
    total = _layers(config)
    kinds = [_kind(config, layer) for layer in range(total)]
    return 1 + max(kinds.index(kind) for kind in set(kinds))


def _kind(config: Mapping[str, Any], layer: int) -> tuple[Any, bool, bool]:
    ratios = config.get("compress_ratios") or []
    return (
        ratios[layer] if layer < len(ratios) else None,
        layer < (config.get("num_hash_layers") or 0),
        layer < (config.get("first_k_dense_replace") or 0),
    )


def shortened(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The config with its first `layers` layers; speculative blocks come after them as before."""
    total = _layers(config)
    if not 1 <= layers <= total:
        raise ValueError(f"the model has 1 to {total} layers, not {layers}")
    short = copy.deepcopy(dict(config))
    short["num_hidden_layers"] = layers
    ratios = config.get("compress_ratios")
    if ratios:
        short["compress_ratios"] = [*ratios[:layers], *ratios[total:]]
    for key in ("num_hash_layers", "first_k_dense_replace"):
        if config.get(key):
            short[key] = min(config[key], layers)
    targets = config.get("dspark_target_layer_ids")
    if targets:
        # The last layers feed the draft in the original; their number is a width of the draft.
        short["dspark_target_layer_ids"] = [max(0, t - total + layers) for t in targets]
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        short["quantization_config"] = _renumbered(quantization, total, layers)
    return short


def _layers(config: Mapping[str, Any]) -> int:
    total = config.get("num_hidden_layers")
    if not isinstance(total, int):
        raise MissingField("num_hidden_layers")
    return total


def _renumbered(value: Any, total: int, layers: int) -> Any:
    """Names and patterns of speculative blocks, `layers.TOTAL.` and up, by their new numbers."""
    if isinstance(value, dict):
        return {key: _renumbered(one, total, layers) for key, one in value.items()}
    if isinstance(value, list):
        return [_renumbered(one, total, layers) for one in value]
    if not isinstance(value, str):
        return value

    def moved(found: re.Match[str]) -> str:
        number = int(found[2])
        return f"{found[1]}{number - total + layers if number >= total else number}{found[3]}"

    return re.sub(r"(\blayers\\?\.)(\d+)(\\?\.)", moved, value)
