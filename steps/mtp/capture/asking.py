"""Asks a server the calibration prompts, and waits for what its plugin records of them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps.mtp.capture import plugin
from runbook.steps.mtp.capture.server import HOST, NAME

if TYPE_CHECKING:
    from runbook.steps.common.starting.vllm import Startup

FINISH_SECONDS = 1800
"""Seconds without one more expert's moments after which the server is given up."""


def ask_all(ctx: Context, server: Startup, prompts: list[list[dict[str, str]]], raw: Path) -> None:
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


def finish(ctx: Context, server: Startup, raw: Path, experts: int) -> None:
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
