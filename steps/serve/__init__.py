"""Serve a model with vLLM, as a service that outlives the attempt that started it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Check, Context, Json, Model, PreconditionNotMet, Reason, Work
from runbook.remedy import Remedy
from runbook.steps.common import endpoint, remote_code
from runbook.steps.common.flags.command import effective, overlay
from runbook.steps.common.flags.reference import reference
from runbook.steps.common.service import Service
from runbook.steps.serve import key
from runbook.steps.serve.command import differences, spec

LEAST_START_SECONDS = 60.0
"""What a start takes at least; a large checkpoint takes minutes more."""


class Serve:
    """One server per workspace. `check` looks at the record, the process and /health."""

    version = "1"
    Inputs = Model("runbook.steps.serve.models:Inputs")
    Outputs = Model("runbook.steps.serve.models:Outputs")

    def check(self, ctx: Context) -> Check:
        inputs = effective(ctx.inputs)
        here = folder(ctx.workspace)
        running = Service.load(here)
        reason = _unmet(running, inputs)
        wanted = spec(inputs)
        if untrusted := remote_code.refusal(wanted["argv"], wanted["trusted_code"]):
            return Check.unsatisfied(untrusted)
        if reason is None and running is not None and ctx.deep:
            reason = _not_listed(here, inputs)
        if reason is not None or running is None:
            reason = reason or Reason("not_started", "no server was started")
            broken = self.foresee(vars(ctx.inputs), (), ctx.facts)
            return Check.unsatisfied(reason, *broken, work=Work(seconds=LEAST_START_SECONDS))
        file = key.path(here, inputs)
        return Check.satisfied(
            {
                "endpoint": f"{endpoint.url(inputs.host, inputs.port)}/v1",
                "model": inputs.served_model_name,
                "profile": inputs.profile,
                "profile_reason": getattr(inputs, "profile_reason", None) or None,
                "reference": expected(inputs, ctx.facts),
                "log": str(running.log),
                "api_key_file": None if file is None else str(file),
                "process": running.process.dump(),
                **running.found,
            },
            *_advice(running, inputs),
        )

    def foresee(
        self, given: Mapping[str, Json], unknown: Collection[str], facts: Mapping[str, Any]
    ) -> Iterator[Reason]:
        """The rules that the flags break, as far as these are known."""
        from runbook.steps.common.flags import profiles
        from runbook.steps.serve import rules

        if not any(path.partition(".")[0] in ("profile", "users", "context") for path in unknown):
            try:
                profiles.chosen(given)
            except profiles.NoProfile as problem:
                remedy = "ask for less, or give the profile by name"
                yield Reason("no_profile", str(problem), remedy)
        override: Any = given.get("override") or ()
        yield from rules.findings(rules.world(given, unknown, facts), override)

    def apply(self, ctx: Context) -> None:
        from runbook.steps.serve.launch import Launch

        for reason in self.foresee(vars(ctx.inputs), (), ctx.facts):
            if reason.severity == "error":
                raise PreconditionNotMet(reason.message, code=reason.code, remedy=reason.remedy)
            ctx.log(f"warning: {reason.message}; {reason.remedy}")
        Launch(ctx, effective(ctx.inputs), folder(ctx.workspace)).make_it_serve()

    def undo(self, ctx: Context) -> None:
        import shutil

        from runbook.steps.serve.launch import stop

        here = folder(ctx.workspace)
        running = Service.load(here)
        if running is not None:
            stop(ctx, running, ctx.inputs.stop_grace)
        shutil.rmtree(here, ignore_errors=True)


def expected(inputs: SimpleNamespace, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the profile reached elsewhere on cards like those of this server."""
    from runbook.steps.common import nvml

    gpus = nvml.visible(facts.get("gpus", ()), nvml.devices(overlay(inputs.env)))
    return reference(
        getattr(inputs, "figures", None) or (),
        nvml.taken(gpus, inputs.tensor_parallel_size or 1),
    )


def folder(workspace: Path) -> Path:
    """Where the server's record and log are."""
    return workspace / "serve"


def changes(running: Service, inputs: SimpleNamespace) -> list[str]:
    """What the server was started with and is wanted otherwise now."""
    return differences(running.spec, spec(inputs, key.path(running.folder, inputs)))


def _unmet(running: Service | None, inputs: SimpleNamespace) -> Reason | None:
    if running is None:
        return None
    pid = running.process.pid
    if not running.alive():
        return _death(running) or Reason(
            "server_dead", f"the server, process {pid}, ended before it was ready"
        )
    if changed := changes(running, inputs):
        return Reason("server_changed", f"the server runs with other {', '.join(changed)}")
    if not running.ready:
        died = _death(running)
        after = f"; before it {died.message}" if died is not None else ""
        return Reason("server_starting", f"the server, process {pid}, has not answered yet{after}")
    state = endpoint.health(endpoint.reachable(inputs.host), inputs.port)
    if state != "healthy":
        return Reason(f"server_{state}", f"the server, process {pid}, is {state} at /health")
    return None


def _death(running: Service) -> Reason | None:
    """The latest death of the service in words, with its cause; None if it has not died."""
    if running.ready and running.alive() and not (running.folder / "deaths.json").exists():
        return None  # by far the most frequent: nothing is imported
    from runbook.steps.common import deaths

    known = deaths.known(running.folder)
    now = deaths.of(running)
    if now is not None and all(other.process != now.process for other in known):
        known = [*known, now]
    if not known:
        return None
    return deaths.describe(known[-1], len(known), "serve")


def _advice(running: Service, inputs: SimpleNamespace) -> list[Reason]:
    """What does not keep the server from working, but from working as it is meant to."""
    found = []
    fits, wanted = running.found.get("max_concurrency"), inputs.max_num_seqs
    if fits is not None and wanted is not None and fits < wanted:
        found.append(
            Reason(
                "kv_cache_below_max_num_seqs",
                f"the KV cache holds {fits:g} requests of full length, max_num_seqs is {wanted}",
                "lower max_model_len or max_num_seqs of the serve step",
                "warning",
            )
        )
    if unproven := running.found.get("unproven"):
        said = "; ".join(running.found.get("backends") or []) or "nothing of a backend"
        found.append(
            Reason(
                "backend_unexpected",
                f"the log of the start does not say {' nor '.join(unproven)}; it says {said}",
                Remedy("logs", ("{step}",), text="{command} has why another was taken"),
                "warning",
            )
        )
    if (died := _death(running)) is not None and died.code != "machine_restarted":
        message = f"it serves again, but {died.message}"
        found.append(Reason("server_died_before", message, died.remedy, "warning"))
    return found


def _not_listed(here: Path, inputs: SimpleNamespace) -> Reason | None:
    """The thorough form: the API itself answers, and to the name."""
    from runbook.steps.serve.api import Api, Unanswered

    try:
        api = Api(inputs.host, inputs.port, key.read(key.path(here, inputs)))
        names = [model["id"] for model in api.models()]
    except (OSError, Unanswered) as error:
        return Reason("models_not_listed", f"the server does not list its models: {error}")
    if inputs.served_model_name not in names:
        return Reason("wrong_model", f"the server serves {', '.join(names)}")
    return None
