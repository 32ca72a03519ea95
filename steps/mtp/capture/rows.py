"""From the plugin's rows to the captures that the quantiser reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runbook.steps.mtp.headers import render
from runbook.steps.mtp.write import write_bytes, write_json

PART = 65536
"""Rows in a file."""


class CaptureError(Exception):
    """What was recorded cannot be used."""


def collect(raw: Path, folder: Path, about: Mapping[str, Any]) -> int:
    """Write `tokens-*.safetensors` and `calibration.json`; returns the number of rows.

    Raises `CaptureError` if nothing was recorded, or not from the experts that `about` names.
    """
    number, rows = 0, 0
    for description in sorted(raw.glob("rows-*.json")):
        row = json.loads(description.read_text())
        kind = np.dtype(
            [
                ("x", "<u2", (row["hidden"],)),
                ("experts", "<i4", (row["top"],)),
                ("weights", "<f4", (row["top"],)),
            ]
        )
        path = description.with_suffix(".bin")
        whole = path.stat().st_size // kind.itemsize  # a killed server may leave half a row
        for start in range(0, whole, PART):
            count = min(PART, whole - start)
            part = np.fromfile(path, kind, count, offset=start * kind.itemsize)
            if part["experts"].min() < 0 or part["experts"].max() >= about["experts"]:
                raise CaptureError(f"{path} names experts that the model does not have")
            _save(folder / f"tokens-{number:04}.safetensors", part)
            number, rows = number + 1, rows + count
    if not rows:
        raise CaptureError("the server ran and no row was recorded")
    write_json(folder / "calibration.json", {"kind": "tokens", **about, "tokens": rows})
    return rows


def _save(path: Path, part: Any) -> None:
    arrays = {name: np.ascontiguousarray(part[name]) for name in ("experts", "weights", "x")}
    kinds = {"x": "BF16", "experts": "I32", "weights": "F32"}
    header = render([(n, kinds[n], a.shape, a.nbytes) for n, a in arrays.items()], {})
    write_bytes(path, header + b"".join(a.tobytes() for a in arrays.values()))
