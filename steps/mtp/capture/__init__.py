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
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runbook.protocol import Check, Context, Model, PreconditionNotMet, StepFailure
from runbook.steps.mtp import head
from runbook.steps.mtp.capture import plugin

NAME = "capture"
HOST = "127.0.0.1"
SERVER = "server.json"
"""The identity of the server, by which one that outlived its capture is ended."""
ENTRY = "[vllm.general_plugins]\nrunbook_capture = runbook_capture:register\n"
STOP_SECONDS = 60
START_SECONDS = 3600
FINISH_SECONDS = 1800
"""Seconds without one more expert's moments after which the server is given up."""
WAITING_BYTES = 2048 * 2
"""Memory of an expert's rows, of 2 bytes a value, that wait to be added."""
Server = tuple[str, "subprocess.Popen[bytes]"]
"""A server's base URL and its process."""


class Capture:
    """Makes a folder of captures. An interrupted capture begins anew."""

    version = "2"
    Inputs = Model("runbook.steps.mtp.capture.models:Inputs")
    Outputs = Model("runbook.steps.mtp.capture.models:Outputs")

    def check(self, ctx: Context) -> Check:
        return head.check(
            ctx,
            self.version,
            _sources(ctx),
            lambda made: {"path": str(head.place(ctx)), "tokens": made["tokens"]},
        )

    def apply(self, ctx: Context) -> None:
        from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
        from runbook.steps.checkpoint.lint import subject
        from runbook.steps.common import ports
        from runbook.steps.mtp.capture.results import CaptureError, collect

        folder = head.place(ctx)
        model = Path(ctx.inputs.model)
        try:
            about = subject(open_folder(model))
        except CheckpointError as error:
            raise StepFailure(error.message, code="no_checkpoint", remedy=error.remedy) from error
        if about.layout is None or not about.mtp_blocks():
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
            _ask(ctx, server[0], prompts, raw)
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
                remedy=f"read {folder / 'server.log'}; speculation must be on and the server eager",
            ) from error
        shutil.rmtree(raw)
        ctx.log(f"{tokens} tokens; {empty} experts got none of them")
        head.record(ctx, self.version, folder, _sources(ctx), tokens=tokens)

    def undo(self, ctx: Context) -> None:
        _stop_left(ctx, head.place(ctx))
        head.remove(head.place(ctx))


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
def _served(ctx: Context, folder: Path, raw: Path) -> Iterator[Server]:
    """The model served eagerly with the plugin, once it is healthy."""
    from runbook.files import write_json
    from runbook.process import Identity

    given = ctx.inputs
    command = [given.vllm, "serve", given.model, "--host", HOST, "--port", str(given.port)]
    command += ["--served-model-name", NAME, "--enforce-eager"]
    command += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": 1})]
    command += [str(argument) for argument in given.arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    for values in given.env:
        environment.update(values)
    environment["PATH"] = _joined([*given.path, environment.get("PATH")])
    environment["PYTHONPATH"] = _joined([str(_plugin(raw)), environment.get("PYTHONPATH")])
    environment[plugin.FOLDER] = str(raw)
    environment.pop("HF_TOKEN", None)
    log = folder / "server.log"
    ctx.log("$ " + " ".join(command))
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        if identity := Identity.of(server.pid):
            write_json(folder / SERVER, identity.dump())
        url = f"http://{HOST}:{given.port}"
        _await(ctx, server, url, log)
        yield url, server
    finally:
        _stop(server)
        (folder / SERVER).unlink(missing_ok=True)


def _joined(folders: list[str | None]) -> str:
    return os.pathsep.join(folder for folder in folders if folder)


def _await(ctx: Context, server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx2

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _raise_ended(server, log)
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass  # not listening yet
        ctx.progress(0, None, "", "waiting for the server")
        time.sleep(1)
    raise StepFailure("the server did not become healthy", code="server_slow", remedy=f"read {log}")


def _raise_ended(server: subprocess.Popen[bytes], log: Path) -> None:
    if server.poll() is not None:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise StepFailure(
            f"the server ended with exit status {server.returncode}",
            code="server_died",
            cause="\n".join(tail),
            remedy=f"read {log}",
        )


def _ask(ctx: Context, url: str, prompts: list[list[dict[str, str]]], raw: Path) -> None:
    import httpx2

    given = ctx.inputs
    answered = 0
    with httpx2.Client(timeout=given.answer_timeout) as client:

        def ask(messages: list[dict[str, str]]) -> None:
            body: dict[str, Any] = {"model": NAME, "messages": messages}
            body.update(max_tokens=given.max_tokens, temperature=0, seed=given.seed)
            client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()

        with ThreadPoolExecutor(given.concurrency) as pool:
            for future in as_completed([pool.submit(ask, p) for p in prompts]):
                try:
                    future.result()
                    _raise_failed(raw)
                except (httpx2.HTTPError, StepFailure) as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    _raise_failed(raw)
                    raise StepFailure(
                        "a calibration prompt was not answered",
                        code="prompt_failed",
                        cause=str(error),
                        remedy="read server.log in the folder of the captures",
                        retryable=True,
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


def _finish(ctx: Context, server: Server, raw: Path, experts: int) -> None:
    """Wait until the plugin has written what it recorded."""
    if not list(raw.glob("recording-*")):
        return  # nothing will come
    written, since = -1, time.monotonic()
    while not (raw / plugin.DONE).exists():
        _raise_failed(raw)
        _raise_ended(server[1], raw.parent / "server.log")
        count = len(list(raw.glob("moments-*.safetensors")))
        if count != written:
            written, since = count, time.monotonic()
        elif time.monotonic() - since > FINISH_SECONDS:
            raise StepFailure(
                f"the server wrote the moments of {count} of {experts} experts, then no more",
                code="capture_stuck",
                remedy=f"read {raw.parent / 'server.log'}; is there enough memory and disk?",
            )
        ctx.progress(count, experts, "experts", "writing the moments")
        time.sleep(plugin.POLL)
    ctx.progress(experts, experts, "experts", "writing the moments")


def _stop_left(ctx: Context, folder: Path) -> None:
    """End the server of a capture that was killed: it holds the port, and the GPUs' memory."""
    from runbook.process import Identity, stop_session

    try:
        left = Identity.load(json.loads((folder / SERVER).read_text()))
    except (OSError, ValueError):
        return
    if left is not None and left.alive():
        ctx.log(f"stop process {left.pid}, the server of an interrupted capture")
        stop_session(left.pid, STOP_SECONDS)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started, which shares its session."""
    from runbook.process import stop_session

    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # stop_session ends it
    stop_session(server.pid, 10)
    server.wait()
