"""A checkpoint on a hub: its config, index and headers by ranged requests, no weights."""

from __future__ import annotations

from runbook.steps.mtp.checkpoint import Checkpoint, CheckpointError, load

FIRST = 256 << 10
"""Bytes of a shard asked for at once: most headers fit, and one request is saved."""


def open_repository(reference: str) -> Checkpoint:
    """The checkpoint of a repository, `org/name` or `org/name@revision`.

    Endpoint, token and proxies are those of huggingface_hub (`HF_ENDPOINT`, `HF_TOKEN`, ...).
    Raises `CheckpointError` if the repository cannot be read.
    """
    import httpx
    from huggingface_hub import HfApi, get_session, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    repository, _, revision = reference.partition("@")
    remedy = "check the name, the network and, for a private repository, HF_TOKEN"
    headers = build_hf_headers()
    begun: dict[str, bytes] = {}

    def ranged(name: str, offset: int, length: int) -> bytes:
        url = hf_hub_url(repository, name, revision=commit)
        response = get_session().get(
            url,
            headers={**headers, "Range": f"bytes={offset}-{offset + length - 1}"},
            follow_redirects=True,
        )
        hf_raise_for_status(response)
        if response.status_code != httpx.codes.PARTIAL_CONTENT and offset:
            raise CheckpointError(f"{url} does not serve ranges", "download the checkpoint")
        return response.content[:length]

    def fetch(name: str, offset: int, length: int) -> bytes:
        if not name.endswith(".safetensors"):
            return ranged(name, offset, length)
        if name not in begun:
            begun[name] = ranged(name, 0, min(FIRST, sizes[name]))
        known = begun[name]
        if offset + length <= len(known):
            return known[offset : offset + length]
        if offset < len(known):
            return known[offset:] + ranged(name, len(known), offset + length - len(known))
        return ranged(name, offset, length)

    try:
        info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
        commit = info.sha or revision or "main"
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        return load(f"{repository}@{commit}", sizes, fetch)
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError) as error:
        raise CheckpointError(f"cannot read {repository}: {error}", remedy) from error
