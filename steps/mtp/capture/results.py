"""From what the plugin wrote to the captures that the quantiser reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runbook.steps.checkpoint.headers import render
from runbook.steps.mtp.capture.plugin import DONE
from runbook.steps.mtp.write import write_bytes, write_json

PART = 65536
"""Rows in a file."""


class CaptureError(Exception):
    """What was recorded cannot be used."""


def collect(raw: Path, folder: Path, record: str, about: Mapping[str, Any]) -> tuple[int, int]:
    """Make `folder` captures of the kind `record`; returns the number of tokens, and of experts
    that none was routed to.

    Raises `CaptureError` if nothing was recorded, or not from the experts that `about` names.
    """
    gather = _tokens if record == "tokens" else _moments
    tokens, counts = gather(raw, folder, about["experts"])
    if not tokens:
        raise CaptureError("the server ran and no token was recorded")
    write_json(folder / "calibration.json", {"kind": record, **about, "tokens": tokens})
    return tokens, sum(not count for count in counts)


def _tokens(raw: Path, folder: Path, experts: int) -> tuple[int, list[int]]:
    """Write `tokens-*.safetensors`; returns the number of tokens, and by expert."""
    number, rows = 0, 0
    counts = np.zeros(experts, int)
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
            if part["experts"].min() < 0 or part["experts"].max() >= experts:
                raise CaptureError(f"{path} names experts that the model does not have")
            counts += np.bincount(part["experts"].ravel(), minlength=experts)
            _save(folder / f"tokens-{number:04}.safetensors", part)
            number, rows = number + 1, rows + count
    return rows, counts.tolist()


def _moments(raw: Path, folder: Path, experts: int) -> tuple[int, list[int]]:
    """Take over `moments-*.safetensors`; returns the number of tokens, and by expert."""
    recorders = list(raw.glob("recording-*"))
    if len(recorders) > 1:
        raise CaptureError(
            f"{len(recorders)} processes recorded a part each: serve without data parallelism, "
            "or set `record: tokens`"
        )
    if not recorders:
        return 0, []
    done = json.loads((raw / DONE).read_text())
    if len(done["counts"]) != experts:
        raise CaptureError(
            f"the checkpoint has {len(done['counts'])} experts, the served model {experts}"
        )
    for expert in range(experts):
        name = f"moments-{expert}.safetensors"
        (raw / name).replace(folder / name)
    return done["tokens"], done["counts"]


def _save(path: Path, part: Any) -> None:
    arrays = {name: np.ascontiguousarray(part[name]) for name in ("experts", "weights", "x")}
    kinds = {"x": "BF16", "experts": "I32", "weights": "F32"}
    header = render([(n, kinds[n], a.shape, a.nbytes) for n, a in arrays.items()], {})
    write_bytes(path, header + b"".join(a.tobytes() for a in arrays.values()))
