"""Python code that a checkpoint brings, which `trust_remote_code` would run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from runbook.steps.checkpoint.checkpoint import Checkpoint

DOCUMENTS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Where `auto_map` may name classes of one's own."""
LARGEST = 16 << 20
"""Bytes of a file of code that are read."""


@dataclass(frozen=True)
class Code:
    """`files`: SHA-256 by name, empty where the file could not be read. `classes`: what
    transformers would take from them, or from another repository (`owner/name--module.Class`)."""

    files: dict[str, str]
    classes: tuple[str, ...]


def brought(checkpoint: Checkpoint) -> Code:
    """The code beside the weights: *.py in the checkpoint's own folder, and what `auto_map`
    names."""
    files = {name: _digest(checkpoint, name) for name in sorted(checkpoint.sizes) if _code(name)}
    classes: set[str] = set()
    for name in DOCUMENTS:
        document = checkpoint.config if name == "config.json" else checkpoint.document(name)
        named = document.get("auto_map")
        for value in named.values() if isinstance(named, dict) else ():
            listed = value if isinstance(value, list) else [value]
            classes |= {text for text in listed if isinstance(text, str)}
    return Code(files, tuple(sorted(classes)))


def _code(name: str) -> bool:
    return name.endswith(".py") and "/" not in name


def _digest(checkpoint: Checkpoint, name: str) -> str:
    size = checkpoint.sizes[name]
    if size > LARGEST:
        return ""
    try:
        content = checkpoint.fetch(name, 0, size)
    except OSError:
        return ""
    return hashlib.sha256(content).hexdigest() if len(content) == size else ""
