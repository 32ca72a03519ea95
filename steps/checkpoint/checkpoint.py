"""A checkpoint as its config, index and safetensors headers describe it; no tensor is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from runbook.steps.checkpoint.headers import Header, HeaderError, Tensor, parse

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"

Fetch = Callable[[str, int, int], bytes]
"""`fetch(file, offset, length)`."""


class CheckpointError(Exception):
    """There is no checkpoint to look at: message and remedy for the user."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True)
class Unreadable:
    """A shard or document that cannot be read as what it should be."""

    file: str
    message: str


@dataclass
class Checkpoint:
    """Everything the linter looks at.

    `tensors` has one entry a name, the one that the index points to; `stale` holds tensors that
    lie in a shard while the index does not point to them there (vLLM reads them all the same).
    `values` reads a tensor's bytes; it is None where that would need a download.
    """

    source: str
    config: dict[str, Any]
    index: dict[str, str]
    sizes: dict[str, int]
    headers: dict[str, Header]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stale: list[Tensor] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    indexed: bool = True
    total_size: int | None = None
    fetch: Fetch | None = None

    def __post_init__(self) -> None:
        for shard, header in self.headers.items():
            for tensor in header.tensors:
                if self.index.get(tensor.name) == shard:
                    self.tensors[tensor.name] = tensor
                else:
                    self.stale.append(tensor)

    def read(self, tensor: Tensor) -> bytes | None:
        """The bytes of a tensor; None if this checkpoint is not at hand."""
        if self.fetch is None:
            return None
        return self.fetch(tensor.shard, tensor.begin, tensor.nbytes)

    @property
    def quantization(self) -> Mapping[str, Any]:
        found = self.config.get("quantization_config")
        return found if isinstance(found, dict) else {}


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises `CheckpointError` if there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", "give the folder of a checkpoint")

    def fetch(name: str, offset: int, length: int) -> bytes:
        descriptor = os.open(f"{folder}/{name}", os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    loaded = load(str(folder), sizes, fetch)
    loaded.fetch = fetch
    return loaded


def load(source: str, sizes: Mapping[str, int], fetch: Fetch) -> Checkpoint:
    """The checkpoint whose files have these sizes, read through `fetch`."""
    if CONFIG not in sizes:
        raise CheckpointError(
            f"{source} has no {CONFIG}", "give the folder or repository of a checkpoint"
        )
    unreadable: list[Unreadable] = []
    config = _document(CONFIG, sizes, fetch)
    shards = sorted(name for name in sizes if name.endswith(".safetensors"))
    headers: dict[str, Header] = {}
    for shard in shards:
        try:
            headers[shard] = parse(partial(fetch, shard), shard)
        except HeaderError as error:
            unreadable.append(Unreadable(shard, str(error)))
    total_size = None
    indexed = INDEX in sizes
    if indexed:
        document = _document(INDEX, sizes, fetch)
        index = document.get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
            raise CheckpointError(f"{source}/{INDEX} has no weight_map", "download the file again")
        metadata = document.get("metadata")
        size = metadata.get("total_size") if isinstance(metadata, dict) else None
        total_size = int(size) if isinstance(size, int | float) else None
    else:
        index = {t.name: shard for shard, header in headers.items() for t in header.tensors}
    return Checkpoint(
        source,
        config,
        index,
        dict(sizes),
        headers,
        unreadable=unreadable,
        indexed=indexed,
        total_size=total_size,
    )


def _document(name: str, sizes: Mapping[str, int], fetch: Fetch) -> dict[str, Any]:
    try:
        document = json.loads(fetch(name, 0, sizes[name]))
    except ValueError as error:
        raise CheckpointError(f"{name} is not valid JSON: {error}", "download it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{name} is not a JSON object", "download it again")
    return document
