"""The stamp in a toolkit's folder: it says that the folder is ours, and from what it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runbook.steps.common.stamp import Stamp
from runbook.steps.common.store import sha256_file

KIND = "toolkit"
NAME = ".runbook-toolkit.json"
_TEXTS = (
    *("provider", "cuda_home", "nvcc", "nvcc_version", "ptxas"),
    *("cc", "cxx", "gcc_version"),
)


def is_ours(entry: Path) -> bool:
    """Whether a file in a prefix is the stamp, or what a kill left of writing it."""
    return NAME in entry.name


def digest(lock: Path) -> str:
    """SHA-256 of a lock file; "" if it cannot be read."""
    try:
        return sha256_file(lock)
    except OSError:
        return ""


def claim(prefix: Path, provider: str) -> None:
    """Mark a folder as a toolkit in the making."""
    prefix.mkdir(parents=True, exist_ok=True)
    Stamp(KIND, {"provider": provider}, complete=False).write(prefix / NAME)


def is_claimed(prefix: Path) -> bool:
    """Whether a folder is a toolkit of ours, whatever became of what its stamp says."""
    return (prefix / NAME).is_file()


def provider_in(prefix: Path) -> str:
    """Who filled a folder of ours: what its stamp says, else what it looks like."""
    stamp = Stamp.read(prefix / NAME, KIND)
    told = stamp.inputs.get("provider") if stamp is not None else None
    if isinstance(told, str):
        return told
    return "conda" if (prefix / "conda-meta").is_dir() else "pypi"


def read(prefix: Path) -> Stamp | None:
    """The record of a toolkit of ours, complete or not; None where there is none."""
    stamp = Stamp.read(prefix / NAME, KIND)
    if stamp is None or not isinstance(stamp.inputs.get("provider"), str):
        return None
    return stamp if not stamp.complete or _are_outputs(stamp.made) else None


def _are_outputs(made: Mapping[str, Any]) -> bool:
    env, path = made.get("env"), made.get("path")
    return (
        made.keys() == {*_TEXTS, "env", "path"}
        and all(isinstance(made[name], str) for name in _TEXTS)
        and re.fullmatch(r"\d+(\.\d+)*", made["gcc_version"]) is not None
        and isinstance(env, dict)
        and isinstance(path, list)
        and all(isinstance(text, str) for text in (*env.values(), *path))
    )
