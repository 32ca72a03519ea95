"""The step `mtp-capture`: serves a model, asks it calibration prompts and records the inputs of
its MTP block's experts.

The model must have an MTP block already, for instance one rounded to nearest: the block's inputs
come from the model below it, not from its own experts.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.protocol import Check, Context, Model, PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.mtp import artifact
from runbook.steps.mtp.capture import plugin

if TYPE_CHECKING:
    from runbook.steps.common.starting.vllm import Startup

NAME = "capture"
HOST = "127.0.0.1"
SERVER = "server"
"""The folder of the service, whose record ends a server that outlived its capture."""
ENTRY = "[vllm.general_plugins]\nrunbook_capture = runbook_capture:register\n"
STOP_GRACE = 60.0
START_DEADLINE = 3600.0
FINISH_SECONDS = 1800
"""Seconds without one more expert's moments after which the server is given up."""
WAITING_BYTES = 2048 * 2
"""Memory of an expert's rows, of 2 bytes a value, that wait to be added."""


class Capture:
    """Makes a folder of captures. An interrupted capture begins anew."""

    version = "2"
    Inputs = Model("runbook.steps.mtp.capture.models:Inputs")
    Outputs = Model("runbook.steps.mtp.capture.models:Outputs")

    def check(self, ctx: Context) -> Check:
        return artifact.check(
            ctx,
            "mtp-capture",
            self.version,
            _sources(ctx),
            lambda made: {"path": str(artifact.place(ctx)), "tokens": made["tokens"]},
        )

    def apply(self, ctx: Context) -> None:
        from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
        from runbook.steps.checkpoint.lint import subject
        from runbook.steps.common import ports
        from runbook.steps.mtp.capture.results import CaptureError, collect

        folder = artifact.place(ctx)
        model = Path(ctx.inputs.model)
        try:
            about = subject(open_folder(model))
        except CheckpointError as error:
            raise StepFailure(error.message, code="no_checkpoint", remedy=error.remedy) from error
        if about.layout is None or about.layout.draft != "mtp" or not about.mtp_blocks():
            raise StepFailure(
                f"{model} has no MTP block whose inputs could be recorded",
                code="mtp_stripped",
                remedy="serve a model with a block, such as one rounded to nearest",
            )
        prompts = _prompts(Path(ctx.inputs.prompts), ctx.inputs.count, ctx.inputs.seed)
        config = about.checkpoint.config
        raw = folder / "raw"
        _stop_left(ctx, folder)
        ports.require_free(HOST, ctx.inputs.port, ctx.step)
        shutil.rmtree(folder, ignore_errors=True)
        raw.mkdir(parents=True)
        if ctx.inputs.record == "moments":
            _require_room(ctx, folder, config)
        settings = {
            "layer": f"model.layers.{about.layout.layers}.",
            "record": ctx.inputs.record,
            "checkpoint": ctx.inputs.checkpoint,
            "prefix": ctx.inputs.prefix,
            "limit": config.get("swiglu_limit"),
        }
        (raw / plugin.SETTINGS).write_text(json.dumps(settings))
        with _served(ctx, folder, raw) as server:
            (raw / plugin.ON).touch()
            _ask(ctx, server, prompts, raw)
            (raw / plugin.ON).unlink()
            if ctx.inputs.record == "moments":
                _finish(ctx, server, raw, config["n_routed_experts"])
        described = {
            "id": secrets.token_hex(8),
            "experts": config["n_routed_experts"],
            "limit": settings["limit"],
            "prompts": len(prompts),
            "max_tokens": ctx.inputs.max_tokens,
            "seed": ctx.inputs.seed,
        }
        try:
            tokens, empty = collect(raw, folder, ctx.inputs.record, described)
        except CaptureError as error:
            raise StepFailure(
                "nothing useful was captured",
                code="capture_empty",
                cause=str(error),
                remedy=Remedy(
                    "logs",
                    ("{step}",),
                    text="see {command}: speculation must be on and the server eager",
                ),
            ) from error
        shutil.rmtree(raw)
        ctx.log(f"{tokens} tokens; {empty} experts got none of them")
        artifact.record(ctx, "mtp-capture", self.version, folder, _sources(ctx), tokens=tokens)

    def undo(self, ctx: Context) -> None:
        _stop_left(ctx, artifact.place(ctx))
        artifact.remove(artifact.place(ctx))


def _sources(ctx: Context) -> dict[str, Path]:
    """The files that the captures depend on."""
    found = {"model": Path(ctx.inputs.model), "prompts": Path(ctx.inputs.prompts)}
    if ctx.inputs.record == "moments":
        found["checkpoint"] = Path(ctx.inputs.checkpoint)
    return found


def _require_room(ctx: Context, folder: Path, config: dict[str, Any]) -> None:
    """Raise unless the moments fit: stream.py has the arithmetic."""
    experts, width = config["n_routed_experts"], config["hidden_size"]
    moments = experts * (width**2 + config["moe_intermediate_size"] ** 2) * 9 // 4
    memory = moments + experts * width * WAITING_BYTES
    free = {
        "memory": (memory, ctx.facts.get("memory", {}).get("available", memory)),
        "disk": (moments, shutil.disk_usage(folder).free),
    }
    for what, (needed, available) in free.items():
        if needed > available:
            raise PreconditionNotMet(
                f"the moments of {experts} experts need {needed / 1e9:.1f} GB of {what}, "
                f"{available / 1e9:.1f} GB are free",
                code=f"not_enough_{what}",
                remedy="make room, or set `record: tokens`",
            )


def _prompts(path: Path, count: int, seed: int) -> list[list[dict[str, str]]]:
    from runbook.steps.mtp.prompts import no_pyarrow
    from runbook.steps.mtp.prompts.conversations import ParquetMissing, PromptError, draw

    try:
        return draw([path], count, seed)
    except ParquetMissing as error:
        raise no_pyarrow() from error
    except PromptError as error:
        raise StepFailure(
            f"no prompts can be drawn from {path}",
            code="bad_prompts",
            cause=str(error),
            remedy="give a file with a prompt, or a JSON object with prompt or messages, a line",
        ) from error


def _plugin(folder: Path) -> Path:
    """A folder that, on PYTHONPATH, makes the plugin known to vLLM without installing it, and
    what it needs to compute moments."""
    made = folder / "plugin"
    about = made / "runbook_capture-1.dist-info"
    about.mkdir(parents=True)
    here = Path(__file__).parent
    shutil.copyfile(here / "plugin.py", made / "runbook_capture.py")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(here.parent / "retrofit", made / "mtp_retrofit", ignore=ignored)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: runbook-capture\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY)
    return made


@contextmanager
def _served(ctx: Context, folder: Path, raw: Path) -> Iterator[Startup]:
    """The model served eagerly with the plugin, once it is healthy."""
    from runbook.steps.common import endpoint, service
    from runbook.steps.common.starting.vllm import Startup

    server = None
    try:
        running = service.start(folder / SERVER, _spec(ctx, raw))
        server = Startup(ctx, running, START_DEADLINE)
        ctx.log("$ " + " ".join(running.spec["argv"]))
        server.until(lambda: endpoint.health(HOST, ctx.inputs.port) == "healthy")
        yield server
    finally:
        if server is not None:
            server.close()
        _stop_left(ctx, folder)


def _spec(ctx: Context, raw: Path) -> dict[str, Any]:
    """How the server is started: eagerly, drafting, with the plugin on its path."""
    from runbook.steps.common import jit

    given = ctx.inputs
    argv = [given.vllm, "serve", given.model, "--host", HOST, "--port", str(given.port)]
    argv += ["--served-model-name", NAME, "--enforce-eager"]
    argv += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": 1})]
    argv += [str(argument) for argument in given.arguments]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    for values in given.env:
        environment.update(values)
    python_path = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
    folders = [str(_plugin(raw)), *([python_path] if python_path else [])]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    environment[plugin.FOLDER] = str(raw)
    kernels = jit.environment(ctx, given.build)
    return {"argv": argv, "env": environment, "base_env": kernels, "path": list(given.path)}


def _ask(ctx: Context, server: Startup, prompts: list[list[dict[str, str]]], raw: Path) -> None:
    from runbook.steps.common import http
    from runbook.steps.common.transport import requests

    given = ctx.inputs
    url = f"http://{HOST}:{given.port}/v1/chat/completions"
    answered = 0
    with http.session(local=True) as session:

        def ask(messages: list[dict[str, str]]) -> None:
            body: dict[str, Any] = {"model": NAME, "messages": messages}
            body.update(max_tokens=given.max_tokens, temperature=0, seed=given.seed)
            session.post(url, json=body, timeout=given.answer_timeout).raise_for_status()

        with ThreadPoolExecutor(given.concurrency) as pool:
            for future in as_completed([pool.submit(ask, p) for p in prompts]):
                try:
                    future.result()
                    _raise_failed(raw)
                except (requests.RequestException, StepFailure) as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    _raise_failed(raw)
                    server.follow("the server ended while it answered")
                    raise StepFailure(
                        "a calibration prompt was not answered",
                        code="prompt_failed",
                        cause=str(error),
                        remedy=Remedy(
                            "logs", ("{step}",), text="{command} has what the server said"
                        ),
                        retryable=True,
                        where=str(server.running.log),
                    ) from error
                answered += 1
                ctx.progress(answered, len(prompts), "prompts", "capturing")


def _raise_failed(raw: Path) -> None:
    """Raise what the plugin says went wrong, if anything."""
    if (path := raw / plugin.FAILED).exists():
        raise StepFailure(
            "the inputs of the experts could not be recorded",
            code="capture_failed",
            cause=path.read_text(),
            remedy="correct what the cause names; `record: tokens` computes less in the server",
        )


def _finish(ctx: Context, server: Startup, raw: Path, experts: int) -> None:
    """Wait until the plugin has written what it recorded."""
    if not list(raw.glob("recording-*")):
        return  # nothing will come
    written, since = -1, time.monotonic()
    while not (raw / plugin.DONE).exists():
        _raise_failed(raw)
        server.follow("the server ended before it had written what it recorded")
        count = len(list(raw.glob("moments-*.safetensors")))
        if count != written:
            written, since = count, time.monotonic()
        elif time.monotonic() - since > FINISH_SECONDS:
            raise StepFailure(
                f"the server wrote the moments of {count} of {experts} experts, then no more",
                code="capture_stuck",
                remedy=Remedy(
                    "logs", ("{step}",), text="see {command}; is there enough memory and disk?"
                ),
                where=str(server.running.log),
            )
        ctx.progress(count, experts, "experts", "writing the moments")
        time.sleep(plugin.POLL)
    ctx.progress(experts, experts, "experts", "writing the moments")


def _stop_left(ctx: Context, folder: Path) -> None:
    """End the server, also that of a capture that was killed: it holds the port, and the GPUs'
    memory."""
    from runbook.steps.common.service import Service

    left = Service.load(folder / SERVER)
    if left is not None and left.members():
        ctx.log(f"stop the server, process {left.process.pid}")
        left.stop(STOP_GRACE)
