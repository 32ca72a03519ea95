"""Serve a model with vLLM, as a service that outlives the attempt that started it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Check, Context, Model, Reason, StepFailure, Work
from runbook.remedy import Remedy
from runbook.steps.common import endpoint
from runbook.steps.common.service import Service
from runbook.steps.serve.command import differences, effective, spec

LEAST_START_SECONDS = 60.0
"""What a start takes at least; a large checkpoint takes minutes more."""
CANCEL_GRACE = 3.0
RECOVERY_SECONDS = 30.0
"""How long a server that has answered before may be silent until another takes its place."""


class Serve:
    """One server per workspace. `check` looks at the record, the process and /health."""

    version = "1"
    Inputs = Model("runbook.steps.serve.models:Inputs")
    Outputs = Model("runbook.steps.serve.models:Outputs")

    def check(self, ctx: Context) -> Check:
        inputs = effective(ctx.inputs)
        running = Service.load(folder(ctx.workspace))
        reason = self._unmet(running, inputs)
        if reason is not None or running is None:
            reason = reason or Reason("not_started", "no server was started")
            return Check.unsatisfied(reason, work=Work(seconds=LEAST_START_SECONDS))
        if ctx.deep and (reason := _not_listed(inputs)) is not None:
            return Check.unsatisfied(reason, work=Work(seconds=LEAST_START_SECONDS))
        return Check.satisfied(
            {
                "endpoint": f"{endpoint.url(inputs.host, inputs.port)}/v1",
                "model": inputs.served_model_name,
                "profile": inputs.profile,
                "log": str(running.log),
                "process": running.process.dump(),
                **running.found,
            },
            *_advice(running, inputs),
        )

    def _unmet(self, running: Service | None, inputs: SimpleNamespace) -> Reason | None:
        if running is None:
            return None
        pid = running.process.pid
        if not running.alive():
            return Reason("server_dead", f"the server, process {pid}, runs no more")
        if changed := changes(running, inputs):
            return Reason("server_changed", f"the server runs with other {', '.join(changed)}")
        if not running.ready:
            return Reason("server_starting", f"the server, process {pid}, has not answered yet")
        state = endpoint.health(endpoint.reachable(inputs.host), inputs.port)
        if state != "healthy":
            return Reason(f"server_{state}", f"the server, process {pid}, is {state} at /health")
        return None

    def apply(self, ctx: Context) -> None:
        from runbook.steps.serve.readiness import Startup

        inputs = effective(ctx.inputs)
        here = folder(ctx.workspace)
        running = Service.load(here)
        if running is not None and not self._usable(ctx, running, inputs):
            _stop(ctx, running, inputs.stop_grace)
            running = None
        if running is not None and running.ready:
            ctx.log(f"process {running.process.pid} serves already")
            return
        grace: float | None = CANCEL_GRACE
        try:
            if running is None:
                running = self._start(ctx, inputs, here)
            else:
                ctx.log(f"wait for the server that starts already, process {running.process.pid}")
            found = Startup(ctx, inputs, running).wait()
            running.mark_ready(found | {"supervisor": running.spec["keeper"]})
            grace = None
        except StepFailure:
            grace = inputs.stop_grace
            raise
        finally:
            left = Service.load(here)
            if grace is not None and left is not None:
                _stop(ctx, left, grace)
        ctx.log(f"serving {inputs.served_model_name} on port {inputs.port}")

    def _usable(self, ctx: Context, running: Service, inputs: SimpleNamespace) -> bool:
        """Whether a recorded server is the wanted one and works, or may come to work."""
        if not running.alive():
            return False
        if changed := changes(running, inputs):
            ctx.log(f"the server runs with other {', '.join(changed)}")
            return False
        deadline = time.monotonic() + RECOVERY_SECONDS
        while running.ready and running.alive():
            if endpoint.health(endpoint.reachable(inputs.host), inputs.port) == "healthy":
                return True
            if time.monotonic() > deadline:
                ctx.log(f"the server did not answer for {RECOVERY_SECONDS:g} seconds")
                return False
            time.sleep(0.1)
        return running.alive()

    def _start(self, ctx: Context, inputs: SimpleNamespace, here: Path) -> Service:
        from runbook.steps.common import jit, ports
        from runbook.steps.serve.readiness import require_model_folder
        from runbook.steps.serve.supervisor import SystemdUser, supervisor

        require_model_folder(Path(inputs.model), inputs.speculative_config)
        _require_program(Path(inputs.vllm))
        ports.require_free(inputs.host, inputs.port, ctx.step)
        keeper = supervisor(inputs.supervisor)
        ctx.log(f"start vLLM ({keeper.kind}), log {here / 'server.log'}")
        if keeper.kind == "systemd-user" and not SystemdUser.lingers():
            ctx.log("warning: it ends when you log out, unless you `loginctl enable-linger`")
        own = {
            "keeper": keeper.kind,
            "stop_grace": inputs.stop_grace,
            "base_env": jit.environment(ctx, str(inputs.digests.get("build") or "")),
        }
        wanted = spec(inputs) | own
        return keeper.start(here, wanted | {"first": jit.Starts(wanted).is_first()})

    def undo(self, ctx: Context) -> None:
        import shutil

        here = folder(ctx.workspace)
        running = Service.load(here)
        if running is not None:
            _stop(ctx, running, ctx.inputs.stop_grace)
        shutil.rmtree(here, ignore_errors=True)


def folder(workspace: Path) -> Path:
    """Where the server's record and log are."""
    return workspace / "serve"


def changes(running: Service, inputs: SimpleNamespace) -> list[str]:
    """What the server was started with and is wanted otherwise now."""
    return differences(running.spec, spec(inputs))


def _advice(running: Service, inputs: SimpleNamespace) -> list[Reason]:
    """What does not keep the server from working, but from working as it is meant to."""
    fits, wanted = running.found.get("max_concurrency"), inputs.max_num_seqs
    if fits is None or wanted is None or fits >= wanted:
        return []
    return [
        Reason(
            "kv_cache_below_max_num_seqs",
            f"the KV cache holds {fits:g} requests of full length, max_num_seqs is {wanted}",
            "lower max_model_len or max_num_seqs of the serve step",
            "warning",
        )
    ]


def _not_listed(inputs: SimpleNamespace) -> Reason | None:
    """The thorough form: the API itself answers, and to the name."""
    from runbook.steps.serve.api import Api, Unanswered

    try:
        names = [model["id"] for model in Api(inputs.host, inputs.port).models()]
    except Unanswered as error:
        return Reason("models_not_listed", f"the server does not list its models: {error}")
    if inputs.served_model_name not in names:
        return Reason("wrong_model", f"the server serves {', '.join(names)}")
    return None


def _stop(ctx: Context, running: Service, grace: float) -> None:
    from runbook.steps.serve.supervisor import Session, SystemdUser

    if running.members():
        ctx.log(f"stop the server, process {running.process.pid}")
    keeper: Any = SystemdUser() if running.spec.get("keeper") == "systemd-user" else Session()
    keeper.stop(running, grace)


def _require_program(vllm: Path) -> None:
    import os

    if not os.access(vllm, os.X_OK):
        raise StepFailure(
            f"{vllm} cannot be run",
            code="vllm_missing",
            cause="there is no such program",
            remedy=Remedy("run", ("--from", "{step}"), "vllm"),
        )
