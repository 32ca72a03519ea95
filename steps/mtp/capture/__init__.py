"""The step `mtp-capture`: serves a model, asks it calibration prompts and records the inputs of
its MTP block's experts.

The model must have an MTP block already, for instance one rounded to nearest: the block's inputs
come from the model below it, not from its own experts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runbook.protocol import Check, Context, Model, StepFailure
from runbook.steps.mtp import head

NAME = "capture"
ENTRY = "[vllm.general_plugins]\nrunbook_capture = runbook_capture:register\n"
STOP_SECONDS = 60
START_SECONDS = 3600


class Capture:
    """Makes a folder of captures. An interrupted capture begins anew."""

    version = "1"
    Inputs = Model("runbook.steps.mtp.capture.models:Inputs")
    Outputs = Model("runbook.steps.mtp.capture.models:Outputs")

    def check(self, ctx: Context) -> Check:
        return head.check(
            ctx,
            self.version,
            {"model": Path(ctx.inputs.model)},
            lambda made: {"path": str(head.place(ctx)), "tokens": made["tokens"]},
        )

    def apply(self, ctx: Context) -> None:
        from runbook.steps.mtp.capture.rows import CaptureError, collect
        from runbook.steps.mtp.checkpoint import CheckpointError, open_folder
        from runbook.steps.mtp.lint import subject

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
        shutil.rmtree(folder, ignore_errors=True)
        raw.mkdir(parents=True)
        layer = f"model.layers.{about.layout.layers}."
        with _served(ctx, folder, raw, layer) as url:
            (raw / "on").touch()
            _ask(ctx, url, prompts)
            (raw / "on").unlink()
        described = {
            "experts": config["n_routed_experts"],
            "limit": config.get("swiglu_limit"),
            "prompts": len(prompts),
            "max_tokens": ctx.inputs.max_tokens,
            "seed": ctx.inputs.seed,
        }
        try:
            tokens = collect(raw, folder, described)
        except CaptureError as error:
            raise StepFailure(
                "nothing useful was captured",
                code="capture_empty",
                cause=str(error),
                remedy=f"read {folder / 'server.log'}; speculation must be on and the server eager",
            ) from error
        shutil.rmtree(raw)
        head.record(ctx, self.version, folder, {"model": model}, tokens=tokens)

    def undo(self, ctx: Context) -> None:
        head.remove(head.place(ctx))


def _prompts(path: Path, count: int, seed: int) -> list[list[dict[str, str]]]:
    """Conversations drawn from a file: a line of text, or of JSON with `prompt` or `messages`."""
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        found = [_conversation(line) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise StepFailure(
            f"the prompts in {path} cannot be read",
            code="bad_prompts",
            cause=str(error),
            remedy="give a file with a prompt, or a JSON object with prompt or messages, a line",
        ) from error
    if not found:
        raise StepFailure(f"{path} holds no prompts", code="bad_prompts", remedy="give another")
    chosen = random.Random(seed)
    return chosen.sample(found, count) if count < len(found) else found


def _conversation(line: str) -> list[dict[str, str]]:
    if not line.lstrip().startswith("{"):
        return [{"role": "user", "content": line}]
    entry = json.loads(line)
    if "messages" in entry:
        messages: list[dict[str, str]] = entry["messages"]
        return messages
    return [{"role": "user", "content": entry["prompt"]}]


def _plugin(folder: Path) -> Path:
    """A folder that, on PYTHONPATH, makes the plugin known to vLLM without installing it."""
    made = folder / "plugin"
    about = made / "runbook_capture-1.dist-info"
    about.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("plugin.py"), made / "runbook_capture.py")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: runbook-capture\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY)
    return made


@contextmanager
def _served(ctx: Context, folder: Path, raw: Path, layer: str) -> Iterator[str]:
    """The model served eagerly with the plugin; yields the base URL once it is healthy."""
    given = ctx.inputs
    command = [given.vllm, "serve", given.model, "--host", "127.0.0.1", "--port", str(given.port)]
    command += ["--served-model-name", NAME, "--enforce-eager"]
    command += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": 1})]
    command += [str(argument) for argument in given.arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    for values in given.env:
        environment.update(values)
    environment["PATH"] = _joined([*given.path, environment.get("PATH")])
    environment["PYTHONPATH"] = _joined([str(_plugin(folder)), environment.get("PYTHONPATH")])
    environment["RUNBOOK_CAPTURE"] = str(raw)
    environment["RUNBOOK_CAPTURE_LAYER"] = layer
    environment.pop("HF_TOKEN", None)
    log = folder / "server.log"
    ctx.log("$ " + " ".join(command))
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{given.port}"
        _await(ctx, server, url, log)
        yield url
    finally:
        _stop(server)


def _joined(folders: list[str | None]) -> str:
    return os.pathsep.join(folder for folder in folders if folder)


def _await(ctx: Context, server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx2

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            tail = log.read_text(errors="replace").splitlines()[-15:]
            raise StepFailure(
                f"the server ended with exit status {server.returncode}",
                code="server_died",
                cause="\n".join(tail),
                remedy=f"read {log}",
            )
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass  # not listening yet
        ctx.progress(0, None, "", "waiting for the server")
        time.sleep(1)
    raise StepFailure("the server did not become healthy", code="server_slow", remedy=f"read {log}")


def _ask(ctx: Context, url: str, prompts: list[list[dict[str, str]]]) -> None:
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
                except httpx2.HTTPError as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise StepFailure(
                        "a calibration prompt was not answered",
                        code="prompt_failed",
                        cause=str(error),
                        remedy="read server.log in the folder of the captures",
                        retryable=True,
                    ) from error
                answered += 1
                ctx.progress(answered, len(prompts), "prompts", "capturing")


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
