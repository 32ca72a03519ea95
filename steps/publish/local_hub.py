"""The local hub's files and its server: what is published, and whether it is served."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.protocol import Context, Json
from runbook.steps.common import endpoint, ports
from runbook.steps.common.service import Service
from runbook.steps.common.stamp import RESULT, Change, Stamp, marks, read_record
from runbook.steps.publish.repository import KIND, Repository

HOST = "127.0.0.1"
SERVING = "serving.json"
"""What the server says of itself, in the folder of the service."""
STOP_GRACE = 1.0
PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Published:
    """A checkpoint that was written: the repository's name, its revision, the record."""

    name: str
    revision: str
    stamp: Stamp


class LocalHub:
    """The files of the step, and the server that belongs to them. `inputs` and `writer`, a digest
    of the code that writes, decide over every byte: the checkpoint is named by them."""

    def __init__(self, folder: Path, inputs: Mapping[str, Json], writer: str) -> None:
        self.folder = folder
        self.inputs = dict(inputs)
        self.versions = {"writer": writer}
        named = json.dumps([self.inputs, writer], sort_keys=True)
        self.digest = hashlib.sha256(named.encode()).hexdigest()[:16]

    @classmethod
    def of(cls, ctx: Context) -> LocalHub:
        names = ("repo", "variant", "tensor_parallel", "draft")
        writer = hashlib.sha256()
        for source in writer_sources():
            writer.update(source.read_bytes())
        inputs = {name: getattr(ctx.inputs, name) for name in names}
        return cls(ctx.workspace / "hub", inputs, writer.hexdigest())

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.digest

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.digest}.json"

    @property
    def server(self) -> Path:
        """The folder of the service."""
        return self.folder / "server"

    def published(self) -> Published | None:
        """What was written, as the manifest says; None if it was not, or by other code."""
        made = Stamp.read(self.manifest, KIND)
        if made is None or made.changed(inputs=self.inputs, versions=self.versions):
            return None
        name, revision = made.made.get("name"), made.made.get("revision")
        if not isinstance(name, str) or not isinstance(revision, str):
            return None
        return Published(name, revision, made)

    def record(self, repository: Repository) -> None:
        """Write the manifest, by which the server serves and a check sees a change."""
        names = [file.path for file in repository.files]
        files = {RESULT: marks(self.checkpoint, names)}
        Stamp(KIND, self.inputs, self.versions, files, repository.dump()).write(self.manifest)

    def serving(self, running: Service | None) -> dict[str, Any]:
        """What the server says of itself once it listens; empty if it has not said so. The port
        that one of before listened on is known still."""
        said = read_record(self.server / SERVING) or {}
        if type(said.get("port")) is not int:
            return {}
        if running is None or said.get("process") != running.process.dump():
            return {"port": said["port"]}
        return dict(said)

    def damage(self, published: Published) -> Change | None:
        """What of the checkpoint is not as it was written."""
        recorded = published.stamp.files.get(RESULT, {})
        return published.stamp.changed(files={RESULT: marks(self.checkpoint, recorded)})

    def serves(self, running: Service | None) -> bool:
        """Whether the recorded process is alive, is ours and answers for this manifest."""
        published = self.published()
        serving = self.serving(running)
        return (
            running is not None
            and published is not None
            and running.alive()
            and serving.get("manifest") == str(self.manifest)
            and answers(serving["port"], published.name, published.revision)
        )

    def spec(self, port: int) -> dict[str, Any]:
        """How the server is started. It is no part of the attempt, and outlives it."""
        argv = [sys.executable, "-m", "runbook.steps.publish.server"]
        argv += ["--manifest", str(self.manifest), "--state", str(self.server / SERVING)]
        return {"argv": [*argv, "--port", str(port)], "env": {}, "path": []}

    def stop(self) -> None:
        running = Service.load(self.server)
        if running is not None:
            running.stop(STOP_GRACE)

    def remove_others(self) -> None:
        """Remove checkpoints that were written from other inputs or by other code, and what a
        killed attempt left half written."""
        import shutil

        for path in list(self.folder.iterdir()):
            if path.name.endswith(".tmp") and path.is_file():
                path.unlink()
            if path.is_dir() and path not in (self.checkpoint, self.server):
                shutil.rmtree(path)
                path.with_suffix(".json").unlink(missing_ok=True)


def writer_sources() -> list[Path]:
    """The code that writes the checkpoint: it decides the bytes, so it is part of the inputs."""
    here = Path(__file__).parent
    package = here / "checkpoint"
    found = package.rglob("*.py") if package.is_dir() else here.glob("checkpoint*.py")
    return sorted(found)


def listens(port: int) -> bool:
    """Whether a connection is accepted. The kernel does that without waking the server, so on a
    busy machine it takes microseconds where an answer takes tens of milliseconds."""
    import socket

    with socket.socket() as connection:
        connection.settimeout(PROBE_SECONDS)
        # As bytes: to encode a text, the socket module would load its tables for host names.
        return connection.connect_ex((HOST.encode(), port)) == 0


def answers(port: int, name: str, revision: str) -> bool:
    """Whether the server gives the revision."""
    path = f"/api/models/{name}/revision/{revision}"
    return endpoint.health(HOST, port, PROBE_SECONDS, path) == "healthy"


def becomes_free(port: int, patience: float = 2.0) -> bool:
    """Whether a server can listen there, now or within moments: the threads of a killed one may
    hold its socket a little longer than its pid shows."""
    deadline = time.monotonic() + patience
    while ports.in_use(HOST, port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
