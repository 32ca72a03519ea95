"""Compile a model's kernels while its weights are downloaded.

A server with the same flags and a few layers of random weights is started until it answers; what
was compiled is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from runbook.files import read_json, write_json
from runbook.protocol import Check, Context, Json, Model, Reason, StepFailure, Work
from runbook.units import duration, size

if TYPE_CHECKING:
    from runbook.steps.common.starting.vllm import Startup

HOST = "127.0.0.1"
NAME = "kernels"
WORK = Work(seconds=900.0, disk=30 * 10**9)
"""Seen with the flagship's widths on two H200: six layers take 27 GB and 882 s, of which vLLM's JIT
warm-up takes 412."""
STOP_GRACE = 60.0
MIB = 1 << 20


class Kernels:
    """`check` holds once a server has answered with these flags. What cannot be done now, for want
    of free GPUs, is said and holds: the first start of the server compiles then, as without it."""

    version = "1"
    Inputs = Model("runbook.steps.kernels.models:Inputs")
    Outputs = Model("runbook.steps.kernels.models:Outputs")

    def check(self, ctx: Context) -> Check:
        record = read_json(_folder(ctx) / "compiled.json")
        if isinstance(record, dict) and record.get("identity") == _identity(ctx):
            if (failed := record.get("failed")) is not None:
                return Check.satisfied(_outputs(), _left_to_the_first_start(failed))
            return Check.satisfied(record["outputs"])
        if (why := _hindrance(ctx)) is not None:
            return Check.satisfied(_outputs(), Reason("kernels_skipped", why, "", "info"))
        reason = Reason("not_compiled", "no server was started with these flags yet")
        return Check.unsatisfied(reason, work=WORK)

    def apply(self, ctx: Context) -> None:
        from runbook.steps.common.flags.command import effective

        if _hindrance(ctx) is not None:
            return
        here = _folder(ctx)
        here.mkdir(parents=True, exist_ok=True)
        _stop_left(ctx)
        record: dict[str, Any] = {"identity": _identity(ctx)}
        try:
            fetched = _precompiled(ctx)
            model = _checkpoint(ctx)
            record["outputs"] = _start(ctx, effective(ctx.inputs), model) | fetched
        except StepFailure as failure:
            # The server itself may yet start: its weights are mended, and its answers are real.
            ctx.notice(f"kernels are left to the server's first start: {failure.message}")
            record["failed"] = f"{failure.message}: {failure.cause}"
        finally:
            _stop_left(ctx)
            shutil.rmtree(here / "model", ignore_errors=True)
            shutil.rmtree(here / "source", ignore_errors=True)
        write_json(here / "compiled.json", record)

    def undo(self, ctx: Context) -> None:
        _stop_left(ctx)
        shutil.rmtree(_folder(ctx), ignore_errors=True)


def _folder(ctx: Context) -> Path:
    return ctx.workspace / "kernels"


def _outputs() -> dict[str, Json]:
    return {"compiled": False, "seconds": None, "phases": {}}


def _identity(ctx: Context) -> dict[str, Any]:
    """What was compiled for: the architecture, and all inputs (flags, build, model)."""
    from runbook.steps.common import jit

    return {"inputs": vars(ctx.inputs), "architecture": jit.architecture(ctx.facts)}


def _left_to_the_first_start(why: str) -> Reason:
    return Reason(
        "kernels_not_compiled",
        f"kernels are left to the server's first start: {why}",
        "nothing; that start takes minutes longer",
        "warning",
    )


def _hindrance(ctx: Context) -> str | None:
    """Why no server is to be started now, in words."""
    from runbook.steps.common import facts, jit, nvml
    from runbook.steps.common.flags.command import effective, overlay

    gpus = ctx.facts["gpus"]
    if not gpus:
        return "there is no GPU, so there are no kernels to compile"
    if jit.served(ctx, ctx.inputs.build):
        return "a server of this build has served here: its kernels are kept"
    named = nvml.devices(overlay(effective(ctx.inputs).env))
    ours = {gpu["index"] for gpu in nvml.visible(gpus, named)}
    for load in facts.gpu_load():
        if load["index"] in ours and load["used"] > ctx.inputs.gpu_used_mib * MIB:
            used = size(load["used"])
            return f"GPU {load['index']} is busy ({used} in use); the first start compiles"
    return None


def _precompiled(ctx: Context) -> dict[str, Json]:
    if not ctx.inputs.precompiled:
        return {}
    from runbook.steps.kernels.precompiled import fetch

    return {"precompiled": dict(fetch(ctx, Path(ctx.inputs.vllm)))}


def _checkpoint(ctx: Context) -> Path:
    """The synthetic checkpoint, written anew."""
    from runbook.steps.checkpoint.checkpoint import CheckpointError
    from runbook.steps.checkpoint.hub import small_files
    from runbook.steps.checkpoint.layout import MissingField, UnknownArchitecture
    from runbook.steps.common.hub import pins
    from runbook.steps.kernels.synthetic import write
    from runbook.steps.kernels.tensors import UnknownQuantization

    given, here = ctx.inputs, _folder(ctx)
    source = Path(given.source) if given.source else here / "source"
    out = here / "model"
    try:
        if given.repo:
            revision = pins.pinned(ctx, "model", vars(given)) or given.revision
            small_files(f"{given.repo}@{revision}", source)
        made = write(
            source,
            out,
            given.layers,
            report=lambda done, total: ctx.progress(done, total, "bytes", "synthetic weights"),
        )
    except (CheckpointError, UnknownArchitecture, MissingField, UnknownQuantization) as error:
        raise StepFailure(
            "no synthetic checkpoint can be made", code="no_synthetic", cause=repr(error)
        ) from error
    except (OSError, ValueError) as error:
        raise StepFailure(
            f"{out} cannot be written", code="synthetic_not_written", cause=str(error)
        ) from error
    ctx.log(f"{made.layers} layers, {made.tensors} tensors, {size(made.bytes)}")
    return out


def _start(ctx: Context, inputs: SimpleNamespace, model: Path) -> dict[str, Json]:
    """Start the server, ask it once, and say how long that took."""
    from runbook.steps.common import jit, ports, service
    from runbook.steps.common.flags.command import OFFLINE, arguments, overlay
    from runbook.steps.common.starting.vllm import Startup

    ports.require_free(HOST, inputs.port, ctx.step)
    argv = [inputs.vllm, "serve", str(model), "--served-model-name", NAME]
    argv += ["--host", HOST, "--port", str(inputs.port)]
    running = service.start(
        _folder(ctx) / "server",
        {
            "argv": argv + arguments(inputs) + inputs.extra_args,
            "env": OFFLINE | overlay(inputs.env),
            "base_env": jit.environment(ctx, inputs.build),
            "path": inputs.path,
        },
    )
    server = Startup(ctx, running, inputs.start_timeout)
    try:
        return _follow(ctx, server, inputs)
    finally:
        server.close()


def _follow(ctx: Context, server: Startup, inputs: SimpleNamespace) -> dict[str, Json]:
    from runbook.steps.common import endpoint

    server.until(lambda: endpoint.health(HOST, inputs.port) == "healthy")
    server.enter("first_request")
    _ask(server, inputs)
    server.follow("the server ended while it answered")
    phases = server.clock.end()
    seconds = round(sum(phases.values()), 1)
    ctx.log(f"a server answered after {duration(seconds)}")
    return {"compiled": True, "seconds": seconds, "phases": dict(phases)}


def _ask(server: Startup, inputs: SimpleNamespace) -> None:
    """One completion: some kernels are compiled by the first request."""
    from runbook.steps.common import http
    from runbook.steps.common.transport import requests

    body = {"model": NAME, "prompt": "Count from one to ten.", "max_tokens": 16}
    url = f"http://{HOST}:{inputs.port}/v1/completions"
    with http.session(local=True) as session:
        try:
            answer = session.post(url, json=body, timeout=inputs.start_timeout)
            answer.raise_for_status()
        except requests.RequestException as error:
            server.follow("the server ended while it answered")
            raise StepFailure(
                "the server did not answer its first request",
                code="prompt_failed",
                cause=str(error),
                retryable=True,
            ) from error


def _stop_left(ctx: Context) -> None:
    """End the server, also that of an attempt that was killed: it holds the GPUs' memory."""
    from runbook.steps.common.service import Service

    left = Service.load(_folder(ctx) / "server")
    if left is not None:
        if left.members():
            ctx.log(f"stop the server, process {left.process.pid}")
        left.stop(STOP_GRACE)
