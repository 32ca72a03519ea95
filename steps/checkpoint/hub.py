"""A checkpoint on a hub: its config, index and headers by ranged requests, no weights."""

from __future__ import annotations

from typing import Any

from runbook.steps.checkpoint.checkpoint import Checkpoint, CheckpointError, load

FIRST = 256 << 10
"""Bytes of a shard asked for at once: most headers fit, and one request is saved."""


def open_repository(reference: str, endpoint: str | None = None) -> Checkpoint:
    """The checkpoint of a repository, `org/name` or `org/name@revision`.

    Endpoint (unless given), token and proxies are those of huggingface_hub (`HF_ENDPOINT`,
    `HF_TOKEN`, ...). Raises `CheckpointError` if the repository cannot be read.
    """
    import httpx2
    from huggingface_hub import HfFileSystem

    repository, _, revision = reference.partition("@")
    root = f"{repository}@{revision or 'main'}"
    system = HfFileSystem(endpoint=endpoint, skip_instance_cache=True)
    begun: dict[str, bytes] = {}

    def ranged(name: str, offset: int, length: int) -> bytes:
        with system.open(f"{root}/{name}", "rb", cache_type="none") as file:
            file.seek(offset)
            data: bytes = file.read(length)
            return data

    def fetch(name: str, offset: int, length: int) -> bytes:
        if not name.endswith(".safetensors"):
            return ranged(name, offset, length)
        if name not in begun:
            begun[name] = ranged(name, 0, min(FIRST, sizes[name]))
        known = begun[name]
        if offset + length <= len(known):
            return known[offset : offset + length]
        return known[offset:] + ranged(name, max(offset, len(known)), offset + length - len(known))

    try:
        entries: list[Any] = system.ls(root, detail=True)
        sizes = {
            e["name"].rpartition("/")[2]: int(e["size"]) for e in entries if e["type"] == "file"
        }
        return load(root, sizes, fetch)
    except (httpx2.HTTPError, ValueError, OSError) as error:
        raise CheckpointError(
            f"cannot read {repository}: {error}",
            "check the name, the network and, for a private repository, HF_TOKEN",
        ) from error
