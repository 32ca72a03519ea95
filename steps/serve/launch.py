"""Make the wanted server serve: the one that runs if it is that, else another in its place, and
the former one again if that fails."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.files import read_json, write_json
from runbook.protocol import Context, StepFailure
from runbook.steps.common import deaths, endpoint, jit, ports, remote_code
from runbook.steps.common.service import Service
from runbook.steps.common.starting.log import PHASES
from runbook.steps.serve import changes, key
from runbook.steps.serve.beforehand import require_model_folder, require_program
from runbook.steps.serve.command import spec
from runbook.steps.serve.readiness import Startup
from runbook.steps.serve.supervisor import SystemdUser, keeper_of, supervisor, unit_path
from runbook.units import duration

CANCEL_GRACE = 3.0
RECOVERY_SECONDS = 30.0
"""How long a server that has answered before may be silent until another takes its place."""
FORMER = "former.json"
"""How the server was started that served before, until the one in its place is ready."""
ASKED = ("host", "port", "served_model_name", "warm_up", "speculative_config", "start_timeout")
"""Inputs that tell how a server is asked: kept with it, to start it again without its book."""


class Launch:
    """One `apply` of the serve step, on effective inputs."""

    def __init__(self, ctx: Context, inputs: SimpleNamespace, here: Path) -> None:
        self.ctx = ctx
        self.inputs = inputs
        self.here = here

    def make_it_serve(self) -> None:
        running = Service.load(self.here)
        if running is not None and not self._usable(running):
            self._require_startable()
            self._make_way(running)
            running = None
        elif running is not None:  # its code may have changed since it was started
            remote_code.require(spec(self.inputs))
        if running is not None and running.ready:
            self.ctx.log(f"process {running.process.pid} serves already")
            return
        grace: float | None = CANCEL_GRACE
        try:
            self._start_and_wait(running)
            grace = None
        except StepFailure as failure:
            stop_left(self.ctx, self.here, self.inputs.stop_grace)
            grace = None
            self._roll_back(failure)
            raise
        finally:
            if grace is not None:
                stop_left(self.ctx, self.here, grace)
                self._leave_former()
        (self.here / FORMER).unlink(missing_ok=True)
        self.ctx.log(f"serving {self.inputs.served_model_name} on port {self.inputs.port}")

    def _usable(self, running: Service) -> bool:
        """Whether a recorded server is the wanted one and works, or may come to work."""
        if not running.alive():
            return False
        if changed := changes(running, self.inputs):
            self.ctx.log(f"the server runs with other {', '.join(changed)}")
            return False
        if self.ctx.forced and running.ready:
            self.ctx.log("the step was forced: the server is started anew")
            return False
        deadline = time.monotonic() + RECOVERY_SECONDS
        address = endpoint.reachable(self.inputs.host)
        while running.ready and running.alive():
            if endpoint.health(address, self.inputs.port) == "healthy":
                return True
            if time.monotonic() > deadline:
                self.ctx.notice(f"the server did not answer for {RECOVERY_SECONDS:g} seconds")
                return False
            time.sleep(0.1)
        return running.alive()

    def _require_startable(self) -> None:
        """What can be known before a server that works is stopped for another."""
        require_model_folder(Path(self.inputs.model), self.inputs.speculative_config)
        require_program(Path(self.inputs.vllm))
        remote_code.require(spec(self.inputs))
        key.require(self.here, self.inputs)

    def _make_way(self, running: Service) -> None:
        """End the recorded server, remembering how it died, or how to start it again."""
        died = deaths.record(running)
        if died is not None:
            count = len(deaths.known(self.here))
            told = deaths.describe(died, count, "serve")
            self.ctx.notice(f"the server is started again: {told.message}")
        if changes(running, self.inputs):
            deaths.clear(self.here)
            if running.ready and running.alive() and self.inputs.rollback:
                write_json(self.here / FORMER, {"spec": running.spec, "found": running.found})
        stop(self.ctx, running, self.inputs.stop_grace)

    def _start_and_wait(self, running: Service | None) -> None:
        if running is None:
            running = self._start()
        else:
            pid = running.process.pid
            self.ctx.log(f"wait for the server that starts already, process {pid}")
        found = Startup(self.ctx, self.inputs, running).wait()
        keeper = running.spec["keeper"]
        unit = unit_path(running.folder).name if keeper == "systemd-user" else None
        running.mark_ready(found | {"supervisor": keeper, "unit": unit})
        took = ", ".join(f"{PHASES[name]} {duration(s)}" for name, s in found["phases"].items())
        self.ctx.log(f"it took {duration(found['start_seconds'])}: {took}")

    def _start(self) -> Service:
        inputs = self.inputs
        self._require_startable()
        ports.require_free(inputs.host, inputs.port, self.ctx.step)
        keeper = supervisor(inputs.supervisor)
        self.ctx.log(f"start vLLM ({keeper.kind}), log {self.here / 'server.log'}")
        if keeper.kind == "systemd-user" and not SystemdUser.lingers():
            self.ctx.log("warning: it ends when you log out, unless you `loginctl enable-linger`")
        own: dict[str, Any] = {
            "keeper": keeper.kind,
            "stop_grace": inputs.stop_grace,
            "asked": {name: getattr(inputs, name) for name in ASKED},
            "base_env": jit.environment(self.ctx, str(inputs.digests.get("build") or "")),
        }
        wanted = spec(inputs, key.path(self.here, inputs)) | own
        return keeper.start(self.here, wanted | {"first": jit.Starts(wanted).is_first()})

    def _roll_back(self, failure: StepFailure) -> None:
        """Start the server again that served before this one was tried; the failure says so."""
        former = read_json(self.here / FORMER)
        if former is None or not self.inputs.rollback:
            return
        self.ctx.notice(f"{failure.message}; the server that served before is started again")
        try:
            running = keeper_of(former["spec"]).start(self.here, former["spec"])
            Startup(self.ctx, self._asked_again(former["spec"]), running).wait()
        except StepFailure as second:
            stop_left(self.ctx, self.here, self.inputs.stop_grace)
            failure.cause += (
                "\nThe server that served before could not be started again either: "
                f"{second.message}: {second.cause}"
            )
            return
        finally:
            (self.here / FORMER).unlink(missing_ok=True)
        running.mark_ready(former["found"])
        failure.message += "; the server that served before serves again"

    def _leave_former(self) -> None:
        """The switch was cancelled: start the server that served before, and wait no more. Who
        runs the step next waits for it, or tries the other again with the same way back."""
        former = read_json(self.here / FORMER)
        if former is None or not self.inputs.rollback:
            return
        try:
            keeper_of(former["spec"]).start(self.here, former["spec"])
        except StepFailure as failure:
            told = f"could not be started again: {failure.message}"
        else:
            told = "starts again"
        self.ctx.notice(f"the switch was cancelled; the server that served before {told}")

    def _asked_again(self, how: dict[str, Any]) -> SimpleNamespace:
        """The inputs by which a server that was ready before is asked whether it is again."""
        files = how.get("secret_env", {})
        nothing = {"min_acceptance": None, "least_tokens": 1, "chance": True}
        proven: dict[str, Any] = {"drafts": nothing, "near_limit": 0.0, "proof": []}
        proven["api_key_file"] = files.get(key.VARIABLE)
        return SimpleNamespace(**vars(self.inputs) | how.get("asked", {}) | proven)


def stop(ctx: Context, running: Service, grace: float) -> None:
    if running.members():
        ctx.log(f"stop the server, process {running.process.pid}")
    keeper_of(running.spec).stop(running, grace)


def stop_left(ctx: Context, here: Path, grace: float) -> None:
    """Stop whatever is recorded as started."""
    left = Service.load(here)
    if left is not None:
        stop(ctx, left, grace)
