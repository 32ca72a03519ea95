"""Do the safetensors files hold together? Headers and index only, no tensor is read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

from runbook.protocol import Reason
from runbook.steps.common.hub.untrusted import plain, shown

INDEX = ".safetensors.index.json"


def problems(folder: Path, names: Collection[str]) -> Iterator[Reason]:
    """What is wrong with the given files of a folder, as data. Each shard must be as long as its
    header says, hold no unknown dtype, and have every tensor that an index places in it."""
    from runbook.steps.checkpoint.headers import HeaderError, parse

    tensors: dict[str, set[str]] = {}
    for name in sorted(n for n in names if n.endswith(".safetensors")):
        path = folder / name
        with path.open("rb") as file:

            def read(offset: int, length: int, file: object = file) -> bytes:
                file.seek(offset)  # type: ignore[attr-defined]
                return file.read(length)  # type: ignore[attr-defined, no-any-return]

            try:
                header = parse(read, name)
            except HeaderError as error:
                yield Reason("bad_header", f"{name}: {error}")
                continue
        tensors[name] = {tensor.name for tensor in header.tensors}
        size = path.stat().st_size
        if size != header.end:
            short = "truncated" if size < header.end else "too long"
            yield Reason(
                "bad_length", f"{name} is {short}: {size} bytes, its header needs {header.end}"
            )
        for tensor in header.contradictions():
            yield Reason("bad_offsets", f"{name}: the bytes of {tensor} do not fit its shape")
    for name in sorted(n for n in names if n.endswith(INDEX)):
        yield from _index_problems(folder, name, tensors)


def _index_problems(folder: Path, name: str, tensors: dict[str, set[str]]) -> Iterator[Reason]:
    try:
        placed: dict[str, str] = json.loads((folder / name).read_text())["weight_map"]
        parent = name.rpartition("/")[0]
        shards: dict[str, list[str]] = {}
        for tensor, shard in placed.items():
            if not isinstance(shard, str):
                raise TypeError(f"{shown(tensor)} is in {shown(shard)}")
            shards.setdefault(f"{parent}/{shard}" if parent else shard, []).append(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield Reason("bad_index", f"{name} is no index: {shown(str(error))}")
        return
    for shard, wanted in sorted(shards.items()):
        if shard not in tensors:
            message = f"{name} places {len(wanted)} tensors in {plain(shard)}, which is missing"
            yield Reason("missing_shard", message)
            continue
        missing = [tensor for tensor in wanted if tensor not in tensors[shard]]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield Reason(
                "missing_tensor", f"{plain(shard)} lacks {plain(missing[0])}{more}, says {name}"
            )
