"""`uses: publish`: write the rehearsal checkpoint and serve it as the hub would, on this machine.

Makes `<workspace>/hub/`: one folder per checkpoint, named by what it was written from, a manifest
beside it, the server's state and its log. The server is a daemon in a session of its own: it
outlives the attempt that started it, and `undo` stops it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.files import read_json, write_json
from runbook.protocol import Check, Context, Json, Model, Reason, StepFailure
from runbook.steps.common import endpoint, ports, service
from runbook.steps.common.service import Service

HOST = "127.0.0.1"
SERVING = "serving.json"
"""What the server says of itself, in the folder of the service."""
START_DEADLINE = 20.0
STOP_GRACE = 1.0
PROBE_SECONDS = 1.0


class Publish:
    version = "1"
    Inputs = Model("runbook.steps.publish.models:Inputs")
    Outputs = Model("runbook.steps.publish.models:Outputs")

    def files(self, inputs: SimpleNamespace) -> Iterable[Path]:
        return writer_sources()

    def check(self, ctx: Context) -> Check:
        hub = Hub.of(ctx)
        manifest = hub.read_manifest()
        if manifest is None:
            return Check.unsatisfied(
                Reason("not_published", f"{ctx.inputs.repo} was not written yet")
            )
        if problem := hub.damage(manifest):
            return Check.unsatisfied(Reason("checkpoint_changed", problem))
        running = Service.load(hub.server)
        if running is None or not running.alive():
            return Check.unsatisfied(Reason("server_not_running", "the local hub does not run"))
        serving = hub.serving(running)
        if serving.get("manifest") != str(hub.manifest):
            return Check.unsatisfied(
                Reason("server_outdated", "the local hub serves an earlier checkpoint")
            )
        port = serving["port"]
        if ctx.inputs.port not in (0, port):
            return Check.unsatisfied(Reason("other_port", f"the local hub listens on {port}"))
        healthy = listens(port)
        if ctx.deep and healthy:
            healthy = answers(port, manifest["name"], manifest["revision"])
        if not healthy:
            return Check.unsatisfied(
                Reason("server_silent", f"nothing answers for it on {HOST}:{port}")
            )
        outputs: dict[str, Json] = {
            "hub_endpoint": f"http://{HOST}:{port}",
            "repo": manifest["name"],
            "revision": manifest["revision"],
            "variant": ctx.inputs.variant,
            "process": running.process.dump(),
        }
        return Check.satisfied(outputs)

    def apply(self, ctx: Context) -> None:
        hub = Hub.of(ctx)
        hub.folder.mkdir(parents=True, exist_ok=True)
        manifest = hub.read_manifest()
        if manifest is None or hub.damage(manifest):
            self._write(ctx, hub)
        running = Service.load(hub.server)
        serving = hub.serving(running)
        if hub.serves(running) and ctx.inputs.port in (0, serving["port"]):
            return
        hub.stop()
        self._start(ctx, hub, serving)
        hub.remove_others()

    def undo(self, ctx: Context) -> None:
        import shutil

        hub = Hub.of(ctx)
        hub.stop()
        shutil.rmtree(hub.folder, ignore_errors=True)

    def _write(self, ctx: Context, hub: Hub) -> None:
        import shutil

        from runbook.steps.publish import checkpoint
        from runbook.steps.publish.repository import Repository

        inputs = ctx.inputs
        shutil.rmtree(hub.checkpoint, ignore_errors=True)
        hub.manifest.unlink(missing_ok=True)
        temporary = hub.checkpoint.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        ctx.log(f"writing the {inputs.variant} checkpoint")
        checkpoint.write(temporary, inputs.variant, inputs.tensor_parallel)
        for path in temporary.rglob("*"):
            if path.is_file():
                sync(path)
        temporary.rename(hub.checkpoint)
        repository = Repository.of(hub.checkpoint, inputs.repo)
        size = sum(f.size for f in repository.files)
        ctx.log(f"{len(repository.files)} files, {size} bytes, revision {repository.revision}")
        stats = {f.path: stamp(hub.checkpoint / f.path) for f in repository.files}
        write_json(hub.manifest, {**repository.dump(), "stats": stats})

    def _start(self, ctx: Context, hub: Hub, before: dict[str, Any]) -> None:
        from runbook.steps.common.startup import Startup

        # The port of before, so that what was made of the endpoint stays true.
        wanted = ctx.inputs.port or before.get("port") or 0
        if wanted and not becomes_free(wanted):
            if ctx.inputs.port:
                raise StepFailure(
                    f"port {wanted} is taken",
                    code="port_taken",
                    cause=f"another program listens on {HOST}:{wanted}",
                    remedy="set the step's `port` to 0 to have a free one chosen",
                )
            ctx.log(f"port {wanted} was taken in the meantime: choosing another")
            wanted = 0
        running = service.start(hub.server, hub.spec(wanted))
        if running.spec != hub.spec(wanted):  # of an attempt that was killed, for other inputs
            hub.stop()
            running = service.start(hub.server, hub.spec(wanted))
        Startup(ctx, running, START_DEADLINE, "publish").until(lambda: hub.serves(running))
        ctx.log(f"serving {ctx.inputs.repo} at http://{HOST}:{hub.serving(running)['port']}")


class Hub:
    """The files of the step, and the server that belongs to them."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder
        self.digest = digest

    @classmethod
    def of(cls, ctx: Context) -> Hub:
        """Named by everything that the checkpoint is written from."""
        made_from = hashlib.sha256()
        for value in (ctx.inputs.repo, ctx.inputs.variant, str(ctx.inputs.tensor_parallel)):
            made_from.update(value.encode() + b"\0")
        for source in writer_sources():
            made_from.update(source.read_bytes())
        return cls(ctx.workspace / "hub", made_from.hexdigest()[:16])

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

    def read_manifest(self) -> dict[str, Any] | None:
        data: dict[str, Any] | None = read_json(self.manifest)
        return data

    def serving(self, running: Service | None) -> dict[str, Any]:
        """What the server says of itself once it listens; empty if it has not said so. The port
        that one of before listened on is known still."""
        said = read_json(self.server / SERVING) or {}
        if running is None or said.get("process") != running.process.dump():
            return {"port": said["port"]} if "port" in said else {}
        return dict(said)

    def damage(self, manifest: dict[str, Any]) -> str:
        """What of the checkpoint is not as it was written; empty if all is."""
        for name, recorded in manifest["stats"].items():
            try:
                found = stamp(self.checkpoint / name)
            except OSError:
                return f"{name} is missing in {self.checkpoint}"
            if found != recorded:
                return f"{name} in {self.checkpoint} was changed"
        return ""

    def serves(self, running: Service | None) -> bool:
        """Whether the recorded process is alive, is ours and answers for this manifest."""
        manifest = self.read_manifest()
        serving = self.serving(running)
        return (
            running is not None
            and manifest is not None
            and running.alive()
            and serving.get("manifest") == str(self.manifest)
            and answers(serving["port"], manifest["name"], manifest["revision"])
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


def stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
