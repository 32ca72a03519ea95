"""Wait until a started server has answered its first completion, or has certainly failed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from runbook.protocol import Context, StepFailure
from runbook.steps.common.diagnoses import diagnose
from runbook.steps.common.endpoint import url
from runbook.steps.common.metrics import Speculation
from runbook.steps.common.service import Service
from runbook.steps.serve.log import Reader, Tail, root_cause

if TYPE_CHECKING:
    import httpx

POLL_SECONDS = 0.2
PROBE_SECONDS = 5.0
RECENT_LINES = 400
"""How far back a fatal line is looked for at each look: all of a long log would cost too much."""
SETTLE_SECONDS = 5.0
"""How long an engine's death may take to show after its first request was answered by an error."""


class Startup:
    """Follows one start: its log, its process, its endpoint."""

    def __init__(self, ctx: Context, inputs: SimpleNamespace, running: Service) -> None:
        self.ctx = ctx
        self.inputs = inputs
        self.running = running
        self.reader = Reader()
        self.tail = Tail(running.log)
        self.deadline = time.monotonic() + self.inputs.start_timeout
        self.base = url(inputs.host, inputs.port)

    def wait(self) -> dict[str, Any]:
        """What was learnt of the server. Raises StepFailure if it will not become ready."""
        import httpx

        self.ctx.progress(0, message=self.reader.phase)
        # The environment's proxies are not for this machine's own server.
        with httpx.Client(base_url=self.base, timeout=PROBE_SECONDS, trust_env=False) as client:
            while not self._answers(client, "/health"):
                self._look()
                time.sleep(POLL_SECONDS)
            self._require_model(client)
            self.ctx.progress(0, message="answer the first request")
            self._first_completion()
            self._look()
            speculation = self._require_drafts(client)
        reader = self.reader
        return {
            "kv_cache_tokens": reader.kv_cache_tokens,
            "max_concurrency": reader.max_concurrency,
            "draft_head_shared": speculation and reader.shared_embedding and reader.shared_head,
        }

    def _look(self) -> None:
        """Read on in the log; raise if the process is dead, the log hopeless, or time is up."""
        alive = self.running.alive()  # before the log, so that a dead one's last words are read
        changed = False
        for line in self.tail.lines():
            self.ctx.log(line)
            changed = True
            if (at := self.reader.feed(line)) is not None:
                self.ctx.progress(at.done, at.total, at.unit, at.phase)
        if not alive:
            raise self._failure("the server ended while it started", "server_died")
        recent = "\n".join(self.reader.lines[-RECENT_LINES:]) if changed else ""
        if changed and (known := diagnose("serve", recent, only_fatal=True)) is not None:
            raise known.failure("the server cannot start", str(self.running.log))
        if time.monotonic() > self.deadline:
            raise StepFailure(
                f"the server is not ready after {self.inputs.start_timeout:.0f} seconds",
                code="start_timeout",
                cause=f"it was about to {self.reader.phase}; the log's last line: "
                + (self.reader.tail[-1] if self.reader.tail else "none"),
                remedy="read the log; if it only is slow, raise `start_timeout` of the serve step",
                where=str(self.running.log),
            )

    def _failure(self, message: str, code: str) -> StepFailure:
        """The failure that the log tells of, from the most to the least that is known."""
        text = self.reader.text
        where = str(self.running.log)
        if (known := diagnose("serve", text)) is not None:
            return known.failure(message, where)
        cause = root_cause(text) or "\n".join(self.reader.tail) or "the log is empty"
        return StepFailure(
            message,
            code=code,
            cause=cause,
            remedy="read the log for what came before; `runbook run` tries again",
            where=where,
        )

    def _answers(self, client: httpx.Client, path: str) -> bool:
        import httpx

        try:
            return client.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def _require_model(self, client: httpx.Client) -> None:
        """/health alone proves nothing: another server may have the port."""
        import httpx

        try:
            listed = client.get("/v1/models").raise_for_status().json()
            names = [model["id"] for model in listed["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise self._failure(
                "the server does not list its models", "models_not_listed"
            ) from error
        if self.inputs.served_model_name not in names:
            raise StepFailure(
                f"the server serves {', '.join(names)}, not {self.inputs.served_model_name}",
                code="wrong_model",
                cause="another server answers on the port",
                remedy="choose another `port` for the serve step",
            )

    def _first_completion(self) -> None:
        """One completion, in a thread, so that the log is watched meanwhile: the first request
        is where kernels compile, and where a start that looked well can still hang or die."""
        outcome: list[Any] = []
        thread = threading.Thread(target=lambda: outcome.append(self._complete()), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            self._look()
        status, body = outcome[0]
        if status == 200 and self._has_answer(body):
            return
        settle = time.monotonic() + SETTLE_SECONDS
        while self.running.alive() and time.monotonic() < settle:
            time.sleep(POLL_SECONDS)
            self._look()
        self._look()
        failure = self._failure("the first completion failed", "first_completion_failed")
        if failure.code == "first_completion_failed" and root_cause(self.reader.text) is None:
            failure.cause = f"HTTP {status}: {body[:500]}" if status else body
        raise failure

    def _complete(self) -> tuple[int, str]:
        """(HTTP status, body); status 0 and the error's words if there was no answer."""
        import httpx

        warm_up = self.inputs.warm_up
        request = {
            "model": self.inputs.served_model_name,
            "messages": [{"role": "user", "content": warm_up["prompt"]}],
            "max_tokens": warm_up["max_tokens"],
            "temperature": 0,
        }
        if warm_up["chat_template_kwargs"]:
            request["chat_template_kwargs"] = warm_up["chat_template_kwargs"]
        remaining = max(1.0, self.deadline - time.monotonic())
        try:
            answer = httpx.post(
                f"{self.base}/v1/chat/completions",
                json=request,
                timeout=remaining,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            return 0, f"{type(error).__name__}: {error}"
        return answer.status_code, answer.text

    @staticmethod
    def _has_answer(body: str) -> bool:
        try:
            answer = json.loads(body)
            return bool(answer["choices"]) and answer["usage"]["completion_tokens"] > 0
        except (ValueError, KeyError, TypeError):
            return False

    def _require_drafts(self, client: httpx.Client) -> bool | None:
        """Speculation must happen where it is configured: a head that is missing or whose
        embedding is uninitialised gives perfect answers and no error. None if not configured."""
        if self.inputs.speculative_config is None:
            return None
        speculation = Speculation.read(client.get("/metrics").text)
        where = str(self.running.log)
        if speculation is None or speculation.drafted == 0:
            raise StepFailure(
                "the server drafts no tokens, though speculation is configured",
                code="no_drafts",
                cause="/metrics counts no draft tokens after the first completion",
                remedy="`runbook run --from mtp`; see the log's lines on the draft model",
                where=where,
            )
        shared = self.reader.shared_embedding and self.reader.shared_head
        if speculation.accepted == 0 and not shared:
            raise StepFailure(
                f"none of {speculation.drafted} drafted tokens was accepted",
                code="draft_head_uninitialised",
                cause="the log does not say that the draft shares the target's embedding and "
                "head, and the MTP head's own may be uninitialised",
                remedy="`runbook run --from build`: the build must share them; or add "
                "mtp.0.head.weight and mtp.0.emb.tok_emb.weight to the checkpoint",
                where=where,
            )
        return True


def require_model_folder(model: Path, speculative_config: dict[str, Any] | None) -> None:
    """What vLLM would answer with a misleading message, or by asking a hub, said beforehand."""
    config = model / "config.json"
    try:
        values = json.loads(config.read_bytes())
    except FileNotFoundError as error:
        raise StepFailure(
            f"{model} is no model folder",
            code="model_missing",
            cause="it has no config.json",
            remedy="`runbook run --from weights`",
        ) from error
    except ValueError as error:
        raise StepFailure(
            f"{config} is not JSON",
            code="model_damaged",
            cause=str(error),
            remedy="`runbook run --from mtp`",
        ) from error
    wants_head = speculative_config is not None and speculative_config["method"] == "mtp"
    if wants_head and not values.get("num_nextn_predict_layers"):
        raise StepFailure(
            "the model has no MTP head, though speculation by `mtp` is configured",
            code="no_mtp_head",
            cause="num_nextn_predict_layers of its config.json is 0 or missing",
            remedy="`runbook run --from mtp`, or set `speculative_config: null`",
            where=str(config),
        )
