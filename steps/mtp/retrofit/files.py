"""The files of quantised experts: one for each, written whole, with its nine tensors as
compressed-tensors stores them and metadata that records how they were made."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import formats

DTYPES = {torch.int64: "I64", torch.int32: "I32", torch.bfloat16: "BF16"}
Parts = dict[str, tuple[Tensor, Tensor]]
"""Codes and scales by the name of the weight."""


def path_of(out: Path, expert: int) -> Path:
    return out / f"expert-{expert:05}.safetensors"


def done(out: Path, expert: int, digest: str) -> bool:
    """Whether an expert's file is there and made from the same inputs."""
    try:
        with safe_open(path_of(out, expert), "pt") as file:
            return (file.metadata() or {}).get(digest) is not None
    except (OSError, SafetensorError):
        return False


def event(device: torch.device) -> torch.cuda.Event | None:
    """What other streams can wait for to see all that was asked of this one."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def write(
    out: Path,
    expert: int,
    parts: Parts,
    records: dict[str, Any],
    digest: str,
    ready: torch.cuda.Event | None,
) -> None:
    """Pack and store one expert; on a GPU once `ready`, on a stream of its own."""
    stream = None if ready is None else torch.cuda.Stream()
    with torch.cuda.stream(stream):  # does nothing without a stream
        if stream is not None and ready is not None:
            stream.wait_event(ready)
        tensors = _stored(parts)
        if stream is not None:
            stream.synchronize()
        for record in records.values():
            errors = record.pop("errors")
            pair = (None, None) if errors is None else [round(e, 6) for e in errors.tolist()]
            record["error"], record["error_rtn"] = pair
    for name, record in records.items():
        seen = hashlib.sha256()
        for suffix in ("weight_packed", "weight_scale"):
            seen.update(_bytes(tensors[f"{name}.{suffix}"]))
        record["sha256"] = seen.hexdigest()
    replace(path_of(out, expert), _encoded(tensors, {digest: json.dumps(records, sort_keys=True)}))


def _encoded(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[Any]:
    """A safetensors file in pieces, without a copy of the data: copying would keep the thread
    that feeds the GPU from running. Wide items come first, so that all are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in ordered:
        end = at + tensor.nbytes
        kind = DTYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return [struct.pack("<Q", len(raw)), raw, *(_bytes(tensor) for _, tensor in ordered)]


def _bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.flatten().view(torch.uint8).numpy().data
    return data


def _stored(parts: Parts) -> dict[str, Tensor]:
    """The tensors of a file, on their way to the CPU: packed words, scales, shape. From a GPU
    they come to pinned memory, which is several times quicker."""
    tensors: dict[str, Tensor] = {}
    for name, (codes, scales) in parts.items():
        words, scales = formats.pack(codes), scales.to(torch.bfloat16).contiguous()
        tensors[f"{name}.weight_packed"] = words.to("cpu", non_blocking=True)
        tensors[f"{name}.weight_scale"] = scales.to("cpu", non_blocking=True)
        tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape, dtype=torch.int64)
    return tensors


def replace(path: Path, pieces: list[Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
