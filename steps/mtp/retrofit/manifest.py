"""The manifest of a finished quantisation: options, sources, versions, and each weight's record."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open

from .calibration import Calibration
from .files import path_of
from .gptq import GROUP
from .settings import Settings
from .source import Experts

SCHEMA = "mtp-retrofit/1"
MANIFEST = "manifest.json"


def manifest(
    experts: Experts,
    calibration: Calibration,
    out: Path,
    settings: Settings,
    digest: str,
    unrouted: list[str],
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for expert in range(experts.count):
        with safe_open(path_of(out, expert), "pt") as file:
            tensors.update(json.loads(file.metadata()[digest]))
    counted = [t for t in tensors.values() if t["error"] is not None]
    tokens = sum(t["tokens"] for t in counted)

    def mean(key: str) -> float | None:
        """Weighted with tokens: the experts that are used most decide."""
        return round(sum(t[key] * t["tokens"] for t in counted) / tokens, 6) if tokens else None

    return {
        "schema": SCHEMA,
        "digest": digest,
        "options": asdict(settings.options),
        "threshold": settings.threshold,
        "unrouted": settings.unrouted,
        "group_size": GROUP,
        "source": experts.digest(),
        "calibration": {**calibration.about, "digest": calibration.digest()},
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
        "device": torch.cuda.get_device_name() if calibration.device.type == "cuda" else "cpu",
        "summary": {
            "tensors": len(tensors),
            "rounded_to_nearest": sorted(n for n, t in tensors.items() if t["method"] == "rtn"),
            "unrouted": unrouted,
            "error": mean("error"),
            "error_rtn": mean("error_rtn"),
            "tokens_least": min((t["tokens"] for t in tensors.values()), default=0),
            "tokens_most": max((t["tokens"] for t in tensors.values()), default=0),
        },
        "tensors": tensors,
    }
