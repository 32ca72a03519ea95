"""A checkpoint as its config, index and safetensors headers describe it; no tensor is read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from runbook.steps.checkpoint.headers import MAX_HEADER, Header, HeaderError, Tensor, parse
from runbook.steps.checkpoint.quantization import of_modelopt

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
MODELOPT_CONFIG = "hf_quant_config.json"
MAX_DOCUMENT = MAX_HEADER
"""Bytes of a config or index that are read: as many as of a header."""
FOREIGN = {
    ".gguf": "GGUF, the format of llama.cpp",
    ".bin": "PyTorch's pickles",
    ".pt": "PyTorch's pickles",
    ".pth": "PyTorch's pickles",
    ".h5": "Keras's format",
    ".msgpack": "Flax's format",
}
"""Weights in other formats than safetensors, by their ending."""

Fetch = Callable[[str, int, int], bytes]
"""`fetch(file, offset, length)`; may return fewer bytes at the end of the file."""


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
    `local`: its tensors can be read without a download. `odd` are entries of the folder that are
    neither files nor folders: links that lead nowhere, pipes and the like.
    """

    source: str
    config: dict[str, Any]
    index: dict[str, str]
    sizes: dict[str, int]
    headers: dict[str, Header]
    fetch: Fetch
    local: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stale: list[Tensor] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    indexed: bool = True
    total_size: int | None = None

    def __post_init__(self) -> None:
        for shard, header in self.headers.items():
            for tensor in header.tensors:
                if self.index.get(tensor.name) == shard:
                    self.tensors[tensor.name] = tensor
                else:
                    self.stale.append(tensor)

    def read(self, tensor: Tensor, most: int | None = None, skip: int = 0) -> bytes | None:
        """The bytes of a tensor, at most `most` of them from `skip` on; None if this checkpoint is
        not at hand or its file ends before."""
        if not self.local:
            return None
        length = tensor.nbytes - skip if most is None else min(most, tensor.nbytes - skip)
        try:
            data = self.fetch(tensor.shard, tensor.begin + skip, length)
        except OSError:
            return None
        return data if len(data) == length else None

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """What says how weights are quantised, as vLLM looks for it; empty if nothing does."""
        found = self.config.get("quantization_config")
        if isinstance(found, dict) and found:
            return found
        return of_modelopt(self.document(MODELOPT_CONFIG))

    def document(self, name: str) -> dict[str, Any]:
        """A JSON object that lies beside the weights; empty if there is none that can be read."""
        try:
            return read_document(name, self.sizes, self.fetch) if name in self.sizes else {}
        except CheckpointError:
            return {}


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises `CheckpointError` if there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", "give the folder of a checkpoint")

    def fetch(name: str, offset: int, length: int) -> bytes:
        descriptor = os.open(f"{folder}/{name}", os.O_RDONLY)
        try:
            # Not more than there is: the length may come from a damaged file.
            return os.pread(descriptor, min(length, os.fstat(descriptor).st_size), offset)
        finally:
            os.close(descriptor)

    try:
        sizes, odd = _files(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error.strerror}", "correct its owner and mode"
        ) from error
    loaded = load(str(folder), sizes, fetch)
    loaded.local, loaded.odd = True, odd
    return loaded


def _files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """The files of a folder with their sizes, and what is neither file nor folder."""
    sizes: dict[str, int] = {}
    odd: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
                elif not entry.is_dir():
                    odd.append(entry.name)
            except OSError:  # a link that leads to itself, or nowhere
                odd.append(entry.name)
    return sizes, sorted(odd)


def load(source: str, sizes: Mapping[str, int], fetch: Fetch, threads: int = 1) -> Checkpoint:
    """The checkpoint whose files have these sizes, read through `fetch`, of `threads` shards at a
    time. Raises `CheckpointError`; what `fetch` raises of a shard is noted, if it is an OSError."""
    if CONFIG not in sizes:
        raise CheckpointError(f"{source} has no {CONFIG}{_instead(sizes)}", _GIVE)
    config = read_document(CONFIG, sizes, fetch)
    shards = sorted(name for name in sizes if name.endswith(".safetensors"))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            read = list(pool.map(partial(_header, fetch), shards))
    else:
        read = [_header(fetch, shard) for shard in shards]
    headers = {name: h for name, h in zip(shards, read, strict=True) if isinstance(h, Header)}
    total_size = None
    indexed = INDEX in sizes
    if indexed:
        document = read_document(INDEX, sizes, fetch)
        index = document.get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
            raise CheckpointError(f"{source}/{INDEX} has no weight_map", "download the file again")
        metadata = document.get("metadata")
        total_size = _whole(metadata.get("total_size") if isinstance(metadata, dict) else None)
    else:
        index = {t.name: shard for shard, header in headers.items() for t in header.tensors}
    return Checkpoint(
        source,
        config,
        index,
        dict(sizes),
        headers,
        fetch,
        unreadable=[found for found in read if isinstance(found, Unreadable)],
        indexed=indexed,
        total_size=total_size,
    )


_GIVE = "give the folder or repository of a checkpoint"


def _header(fetch: Fetch, shard: str) -> Header | Unreadable:
    try:
        return parse(partial(fetch, shard), shard)
    except HeaderError as error:
        return Unreadable(shard, str(error))
    except OSError as error:
        return Unreadable(shard, error.strerror or str(error))


def foreign(names: Iterable[str]) -> dict[str, str]:
    """Files of weights that are not safetensors, with what they are."""
    return {
        name: FOREIGN[ending]
        for name in sorted(names)
        if (ending := os.path.splitext(name)[1].lower()) in FOREIGN and name != "training_args.bin"
    }


def _instead(sizes: Mapping[str, int]) -> str:
    found = foreign(sizes)
    return "".join(f"; it holds {name}: {what}" for name, what in list(found.items())[:1])


def _whole(value: object) -> int | None:
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    return value if type(value) is int else None


def read_document(name: str, sizes: Mapping[str, int], fetch: Fetch) -> dict[str, Any]:
    """A JSON object by the name of its file. Raises `CheckpointError`."""
    again = "download it again"
    if sizes[name] > MAX_DOCUMENT:
        raise CheckpointError(f"{name} has {sizes[name]} bytes: too large for what it is", again)
    try:
        document = json.loads(fetch(name, 0, sizes[name]).decode("utf-8"))
    except RecursionError:
        raise CheckpointError(f"{name} is nested too deeply", again) from None
    except ValueError as error:
        raise CheckpointError(f"{name} is not valid JSON: {error}", again) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{name} cannot be read: {reason}", again) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{name} is not a JSON object", again)
    return document
