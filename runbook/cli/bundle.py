"""`runbook bundle`: one archive for whoever is asked for help, without a secret in it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import runbook
from runbook.errors import INTERNAL, RunbookError
from runbook.redact import Redactor
from runbook.state.status import status
from runbook.state.workspace import Workspace

MOST_BYTES = 4 << 20
"""Bytes that are taken of one file, its end: a server's log can be of any size."""
RUNS = 3
"""Runs whose journals and logs are taken, the newest."""


def write(book: Mapping[str, Any], workspace: Workspace, target: Path) -> list[dict[str, Any]]:
    """Write the archive; returns its entries as `{name, bytes, sha256}`. The content is redacted
    and then searched once more: an archive with a secret in it is never left behind."""
    redactor = Redactor(book["secrets"])
    entries = []
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, raw in _contents(book, workspace):
            data = redactor.whole(raw)
            _require_clean(name, data, redactor)
            entry = tarfile.TarInfo(f"runbook-{book['name']}/{name}")
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
            digest = hashlib.sha256(data).hexdigest()
            entries.append({"name": name, "bytes": len(data), "sha256": digest})
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(packed.getvalue())
    return entries


def _contents(book: Mapping[str, Any], workspace: Workspace) -> Iterator[tuple[str, bytes]]:
    """The archive's files: what was asked, where it stands, and what was written on the way."""
    yield "document.json", _json(book)
    yield "status.json", _json(status(book, workspace))
    yield "machine.json", _json(_machine())
    yield "packages.txt", _packages().encode()
    for step in book["steps"]:
        record = workspace.checkpoint(step["id"])
        if record is not None:
            yield f"checkpoints/{step['id']}.json", _json(record)
    for run in workspace.runs_newest_first()[:RUNS]:
        for path in sorted(run.iterdir()):
            if path.is_file() and not path.is_symlink():
                yield f"runs/{run.name}/{path.name}", _end_of(path)
    for path in sorted(workspace.state.glob("crash-*.txt")):
        yield path.name, _end_of(path)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _machine() -> dict[str, Any]:
    """The machine as the steps' facts tell it; a fact that cannot be gathered says why."""
    import platform

    from runbook.planning.facts import Facts

    told: dict[str, Any] = {
        "runbook": runbook.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    facts = Facts()
    for name in facts:
        try:
            told[name] = facts[name]
        except Exception as error:  # a driver can fail in any way, and that is worth telling
            told[name] = f"{type(error).__name__}: {error}"
    return told


def _packages() -> str:
    from importlib.metadata import distributions

    return "\n".join(sorted(f"{d.name}=={d.version}" for d in distributions())) + "\n"


def _end_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MOST_BYTES))
        return file.read()


def _require_clean(name: str, data: bytes, redactor: Redactor) -> None:
    if redactor.whole(data) != data:
        raise RunbookError(
            f"a secret is still in {name}",
            code="secret_in_bundle",
            exit_code=INTERNAL,
            cause="redacting left something that looks like one; nothing was written",
            remedy="report this without attaching the file",
        )
