"""Write a checkpoint of another's names, widths and formats with few layers and random content.

Noise of each kind is made once and written again and again, so the disk or tmpfs sets the speed:
156 GB took 17 s on 32 cores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from runbook.steps.kernels.shorten import least_layers, shortened
from runbook.steps.kernels.tensors import SIZES, Pool, Stored, shards

POOL_BYTES = 1 << 25
STEP = 40_503
"""Odd and large: each tensor begins elsewhere in its pool, on a boundary of 16 bytes."""
BATCH = 512
"""Slices given to one `writev`; Linux takes 1,024."""
NOT_COPIED = (".safetensors", ".bin", ".gguf", ".pt", ".safetensors.index.json")

Pools = Mapping[Pool, memoryview]


@dataclass(frozen=True)
class Written:
    """Of a checkpoint: layers, tensors, bytes of tensors."""

    layers: int
    tensors: int
    bytes: int


def write(
    source: Path,
    out: Path,
    layers: int | None = None,
    *,
    threads: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write into `out` a checkpoint like that in `source`, of which only the small files are read
    (config, tokenizer, ...). `layers` None takes the fewest that hold each kind of layer.

    `out` appears whole or not at all. `report` is given bytes written and bytes in all. Raises
    `UnknownArchitecture`, `MissingField`, `UnknownQuantization` for a config that cannot be
    followed, `OSError` where the disk is full.
    """
    config = json.loads((source / "config.json").read_text())
    config = shortened(config, layers or least_layers(config))
    files = shards(config)
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    partial.mkdir(parents=True)
    names = {
        prefix: f"model-{number:05}-of-{len(files):05}.safetensors"
        for number, prefix in enumerate(files, 1)
    }
    pools = _pools()
    done = 0
    with ThreadPoolExecutor(threads or min(32, os.cpu_count() or 1)) as executor:
        written = executor.map(
            lambda item: _file(partial / names[item[1][0]], item[1][1], pools, item[0]),
            enumerate(files.items()),
        )
        for size in written:
            done += size
            report(done, total)
    where = {tensor.name: names[prefix] for prefix, ts in files.items() for tensor in ts}
    _document(
        partial / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))},
    )
    _copy_small(source, partial)
    _document(partial / "config.json", config)
    partial.rename(out)
    return Written(config["num_hidden_layers"], len(where), total)


def _copy_small(source: Path, out: Path) -> None:
    """All but weights: tokenizer, generation config, templates, code that the release brings."""
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(NOT_COPIED):
            shutil.copyfile(path, out / path.name)


def _document(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1))


def _pools() -> dict[Pool, memoryview]:
    random = np.random.default_rng(1)
    normal = random.standard_normal(POOL_BYTES // 4, dtype=np.float32)
    bfloat16 = ml_dtypes.bfloat16
    arrays: dict[Pool, np.ndarray[Any, Any]] = {
        "int4": random.integers(0, 256, POOL_BYTES, dtype=np.uint8),
        "fp8": normal.astype(ml_dtypes.float8_e4m3fn),
        "fp8_scale": random.uniform(0.5, 2.0, POOL_BYTES // 4).astype(ml_dtypes.float8_e4m3fn),
        "noise": (normal * np.float32(0.02)).astype(bfloat16),
        "noise32": normal * np.float32(0.005),
        "scale": random.uniform(0.004, 0.005, POOL_BYTES // 8).astype(bfloat16),
    }
    return {kind: array.view(np.uint8).data for kind, array in arrays.items()}


def _file(path: Path, tensors: list[Stored], pools: Pools, seed: int) -> int:
    """Write one safetensors file; give the bytes of its tensors. Wide types come first, so that
    every tensor is aligned."""
    ordered = sorted(tensors, key=lambda t: (-SIZES[t.dtype], t.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = [memoryview(len(text).to_bytes(8, "little") + text)]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for number, tensor in enumerate(ordered):
            parts += _content(tensor, pools, seed * 977 + number)
            if len(parts) >= BATCH:
                _write(descriptor, parts)
                parts = []
        _write(descriptor, parts)
    finally:
        os.close(descriptor)
    return end


def _content(tensor: Stored, pools: Pools, number: int) -> list[memoryview]:
    if not isinstance(tensor.content, str):
        return [np.ascontiguousarray(tensor.content).reshape(-1).view(np.uint8).data]
    pool, left, parts = pools[tensor.content], tensor.nbytes, []
    start = number * STEP * 16 % len(pool)
    while left:
        size = min(left, len(pool) - start)
        parts.append(pool[start : start + size])
        left, start = left - size, 0
    return parts


def _write(descriptor: int, parts: list[memoryview]) -> None:
    while parts:
        count = os.writev(descriptor, parts[:BATCH])
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if parts and count:
            parts[0] = parts[0][count:]
