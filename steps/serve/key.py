"""The API key of a server: in a file that only its owner can read, and nowhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

from runbook.protocol import PreconditionNotMet
from runbook.remedy import Remedy

VARIABLE = "VLLM_API_KEY"
"""By which vLLM takes the key; as an argument all users of the machine could read it."""


def path(folder: Path, inputs: SimpleNamespace) -> Path | None:
    """The file of the key: the one given, else one of ours where the server listens on more than
    this machine; None if it needs none."""
    if inputs.api_key_file is not None:
        return Path(inputs.api_key_file)
    return None if _is_loopback(inputs.host) else folder / "api_key"


def require(folder: Path, inputs: SimpleNamespace) -> None:
    """Make the key if it is ours to make. Raises PreconditionNotMet for a file that cannot be
    used, or that others can read."""
    import secrets

    file = path(folder, inputs)
    if file is None:
        return
    if inputs.api_key_file is None and not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
        temporary.replace(file)
    try:
        mode = file.stat().st_mode
        empty = not file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _missing(file, str(error)) from error
    if empty:
        raise _missing(file, "it is empty")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PreconditionNotMet(
            "others can read the file of the API key",
            code="api_key_exposed",
            cause=f"its mode is {stat.S_IMODE(mode):04o}",
            remedy=Remedy("run", text=f"`chmod 600 {file}`, then {{command}}"),
            where=str(file),
        )


def _missing(file: Path, cause: str) -> PreconditionNotMet:
    return PreconditionNotMet(
        "the file of the API key holds no key",
        code="api_key_missing",
        cause=cause,
        remedy=Remedy("run", text=f"write the key into {file}, then {{command}}"),
        where=str(file),
    )


def read(file: Path | None) -> str | None:
    return file.read_text().strip() if file is not None else None


def _is_loopback(host: str) -> bool:
    if host in ("127.0.0.1", "::1", "localhost"):
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
