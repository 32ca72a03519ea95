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
from typing import TYPE_CHECKING, Any

from runbook.files import read_json, write_json
from runbook.process import Identity, stop_session
from runbook.protocol import Check, Context, Json, Model, Reason, StepFailure
from runbook.steps.common import endpoint, ports

if TYPE_CHECKING:
    import subprocess

HOST = "127.0.0.1"
EXIT_LOCKED = 75
"""What the server ends with if another one of the same folder lives (EX_TEMPFAIL)."""
START_SECONDS = 20.0
PROBE_SECONDS = 1.0
WITHHELD = ("RUNBOOK_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables, by prefix, that the server does not get: marks of the attempt, and secrets."""


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
        state = hub.read_state()
        process = Identity.load(state.get("process"))
        if process is None or not process.alive():
            return Check.unsatisfied(Reason("server_not_running", "the local hub does not run"))
        if state.get("manifest") != str(hub.manifest):
            return Check.unsatisfied(
                Reason("server_outdated", "the local hub serves an earlier checkpoint")
            )
        if ctx.inputs.port not in (0, state["port"]):
            return Check.unsatisfied(
                Reason("other_port", f"the local hub listens on {state['port']}")
            )
        healthy = listens(state["port"])
        if ctx.deep and healthy:
            healthy = answers(state["port"], manifest["name"], manifest["revision"])
        if not healthy:
            return Check.unsatisfied(
                Reason("server_silent", f"nothing answers for it on {HOST}:{state['port']}")
            )
        outputs: dict[str, Json] = {
            "hub_endpoint": f"http://{HOST}:{state['port']}",
            "repo": manifest["name"],
            "revision": manifest["revision"],
            "variant": ctx.inputs.variant,
            "process": process.dump(),
        }
        return Check.satisfied(outputs)

    def apply(self, ctx: Context) -> None:
        hub = Hub.of(ctx)
        hub.folder.mkdir(parents=True, exist_ok=True)
        manifest = hub.read_manifest()
        if manifest is None or hub.damage(manifest):
            self._write(ctx, hub)
        state = hub.read_state()
        if hub.serves(state) and ctx.inputs.port in (0, state["port"]):
            return
        hub.stop()
        self._start(ctx, hub, state)
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
        process = hub.launch(wanted)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            state = hub.read_state()
            if hub.serves(state):
                if state["process"]["pid"] != process.pid:
                    process.wait()  # it finds the lock of the one that serves, and ends
                ctx.log(f"serving {state['repo']} at http://{HOST}:{state['port']}")
                return
            if process.poll() == EXIT_LOCKED:
                # A server of an attempt that was killed: it is ours if it serves the same.
                if state.get("manifest") not in (None, str(hub.manifest)):
                    hub.stop()
                process = hub.launch(wanted)
            elif process.poll() is not None:
                break
            time.sleep(0.02)
        else:
            process.kill()
        tail = hub.log.read_text(errors="replace").splitlines()[-5:]
        raise StepFailure(
            "the local hub did not start",
            code="server_not_started",
            cause="\n".join(tail),
            remedy=f"read {hub.log}",
            retryable=True,
        )


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
    def state(self) -> Path:
        return self.folder / "server.json"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def read_manifest(self) -> dict[str, Any] | None:
        data: dict[str, Any] | None = read_json(self.manifest)
        return data

    def read_state(self) -> dict[str, Any]:
        return read_json(self.state) or {}

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

    def serves(self, state: dict[str, Any]) -> bool:
        """Whether the recorded process is alive, is ours and answers for this manifest."""
        process = Identity.load(state.get("process"))
        manifest = self.read_manifest()
        return (
            process is not None
            and manifest is not None
            and process.alive()
            and state.get("manifest") == str(self.manifest)
            and answers(state["port"], manifest["name"], manifest["revision"])
        )

    def launch(self, port: int) -> subprocess.Popen[bytes]:
        """Start the server. It is no part of this attempt: it outlives it, has a session of its
        own, and inherits neither descriptors nor secrets."""
        import subprocess

        argv = [sys.executable, "-m", "runbook.steps.publish.server"]
        argv += ["--manifest", str(self.manifest), "--state", str(self.state)]
        argv += ["--port", str(port)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(WITHHELD)}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
                close_fds=True,
            )

    def stop(self) -> None:
        process = Identity.load(self.read_state().get("process"))
        if process is not None and process.alive():
            stop_session(process.pid, grace=2.0)

    def remove_others(self) -> None:
        """Remove checkpoints that were written from other inputs or by other code, and what a
        killed attempt left half written."""
        import shutil

        for path in list(self.folder.iterdir()):
            if path.name.endswith(".tmp") and path.is_file():
                path.unlink()
            if path.is_dir() and path != self.checkpoint:
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
