"""`uses: publish`: write the rehearsal checkpoint and serve it as the hub would, on this machine.

Makes `<workspace>/hub/`: one folder per checkpoint, named by what it was written from, a manifest
beside it, the server's state and its log. The server is a daemon in a session of its own: it
outlives the attempt that started it, and `undo` stops it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Check, Context, Json, Model, Reason, StepFailure
from runbook.steps.common import service
from runbook.steps.common.disk import disk_failure
from runbook.steps.common.service import Service
from runbook.steps.publish.local_hub import (
    HOST,
    LocalHub,
    answers,
    becomes_free,
    listens,
    writer_sources,
)

START_DEADLINE = 20.0


class Publish:
    version = "1"
    # The revision among its outputs tells what is published; a server of it that died is only
    # started again.
    makes_nothing = True
    Inputs = Model("runbook.steps.publish.models:Inputs")
    Outputs = Model("runbook.steps.publish.models:Outputs")

    def files(self, inputs: SimpleNamespace) -> Iterable[Path]:
        return writer_sources()

    def check(self, ctx: Context) -> Check:
        hub = LocalHub.of(ctx)
        published = hub.published()
        if published is None:
            return Check.unsatisfied(
                Reason("not_published", f"{ctx.inputs.repo} was not written yet")
            )
        if change := hub.damage(published):
            message = f"{change} in {hub.checkpoint}"
            return Check.unsatisfied(Reason("checkpoint_changed", message))
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
            healthy = answers(port, published.name, published.revision)
        if not healthy:
            return Check.unsatisfied(
                Reason("server_silent", f"nothing answers for it on {HOST}:{port}")
            )
        outputs: dict[str, Json] = {
            "hub_endpoint": f"http://{HOST}:{port}",
            "repo": published.name,
            "revision": published.revision,
            "variant": ctx.inputs.variant,
            "process": running.process.dump(),
        }
        return Check.satisfied(outputs)

    def apply(self, ctx: Context) -> None:
        hub = LocalHub.of(ctx)
        try:
            hub.folder.mkdir(parents=True, exist_ok=True)
            published = hub.published()
            if published is None or hub.damage(published):
                self._write(ctx, hub)
        except OSError as error:
            raise disk_failure(error, hub.folder) from error
        running = Service.load(hub.server)
        serving = hub.serving(running)
        if hub.serves(running) and ctx.inputs.port in (0, serving["port"]):
            return
        hub.stop()
        self._start(ctx, hub, serving)
        hub.remove_others()

    def undo(self, ctx: Context) -> None:
        import shutil

        hub = LocalHub.of(ctx)
        hub.stop()
        shutil.rmtree(hub.folder, ignore_errors=True)

    def _write(self, ctx: Context, hub: LocalHub) -> None:
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
        checkpoint.write(temporary, inputs.variant, inputs.tensor_parallel, draft=inputs.draft)
        for path in temporary.rglob("*"):
            if path.is_file():
                sync(path)
        temporary.rename(hub.checkpoint)
        repository = Repository.of(hub.checkpoint, inputs.repo)
        size = sum(f.size for f in repository.files)
        ctx.log(f"{len(repository.files)} files, {size} bytes, revision {repository.revision}")
        hub.record(repository)

    def _start(self, ctx: Context, hub: LocalHub, before: dict[str, Any]) -> None:
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


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
