"""Wait until a started vLLM has answered its first completion, or has certainly failed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common import startup
from runbook.steps.common.metrics import Speculation
from runbook.steps.common.server_log import root_cause
from runbook.steps.common.service import Service
from runbook.steps.serve.api import Api, Unanswered
from runbook.steps.serve.log import Reader

SETTLE_SECONDS = 5.0
"""How long an engine's death may take to show after its first request was answered by an error."""


class Startup(startup.Startup):
    """Follows one start of `vllm serve` through its phases to its first completion."""

    def __init__(self, ctx: Context, inputs: SimpleNamespace, running: Service) -> None:
        super().__init__(ctx, running, inputs.start_timeout, "serve")
        self.inputs = inputs
        self.reader = Reader()
        self.api = Api(inputs.host, inputs.port)

    def wait(self) -> dict[str, Any]:
        """What was learnt of the server. Raises StepFailure if it will not become ready."""
        self.ctx.progress(0, message=self.reader.phase)
        self.until(self.api.healthy)
        self._require_model()
        self.ctx.progress(0, message="answer the first request")
        self._first_completion()
        self.look()
        speculation = self._require_drafts()
        reader = self.reader
        return {
            "kv_cache_tokens": reader.kv_cache_tokens,
            "max_concurrency": reader.max_concurrency,
            "draft_head_shared": speculation and reader.shared_embedding and reader.shared_head,
        }

    def take(self, line: str) -> None:
        if (at := self.reader.feed(line)) is not None:
            self.ctx.progress(at.done, at.total, at.unit, at.phase)

    def doing(self) -> str:
        return self.reader.phase

    def _require_model(self) -> None:
        """/health alone proves nothing: another server may have the port."""
        try:
            names = [model["id"] for model in self.api.models()]
        except Unanswered as error:
            raise self.failure(
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
        """One completion, watched: the first request is where kernels compile, and where a start
        that looked well can still hang or die."""
        warm_up = self.inputs.warm_up
        request = {
            "model": self.inputs.served_model_name,
            "messages": [{"role": "user", "content": warm_up["prompt"]}],
            "max_tokens": warm_up["max_tokens"],
            "temperature": 0,
        }
        if warm_up["chat_template_kwargs"]:
            request["chat_template_kwargs"] = warm_up["chat_template_kwargs"]
        answer = self._ask("/v1/chat/completions", request)
        if isinstance(answer, dict) and _has_tokens(answer):
            return
        self._settle()
        failure = self.failure("the first completion failed", "first_completion_failed")
        if failure.code == "first_completion_failed" and root_cause("\n".join(self.lines)) is None:
            failure.cause = str(answer)[:600]
        raise failure

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Unanswered:
        """The answer, awaited in a thread, so that the log is followed meanwhile."""
        outcome: list[dict[str, Any] | Unanswered] = []
        remaining = max(1.0, self.deadline - time.monotonic())

        def post() -> None:
            try:
                outcome.append(self.api.post(path, body, remaining))
            except Unanswered as error:
                outcome.append(error)

        thread = threading.Thread(target=post, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(startup.POLL_SECONDS)
            self.look()
        return outcome[0]

    def _settle(self) -> None:
        """Give an engine that answered by an error the time to die, and raise if it does."""
        settle = time.monotonic() + SETTLE_SECONDS
        while self.running.alive() and time.monotonic() < settle:
            time.sleep(startup.POLL_SECONDS)
            self.look()
        self.look()

    def _require_drafts(self) -> bool | None:
        """Speculation must happen where it is configured: a head that is missing or whose
        embedding is uninitialised gives perfect answers and no error. None if not configured."""
        if self.inputs.speculative_config is None:
            return None
        speculation = Speculation.read(self.api.metrics())
        where = str(self.running.log)
        if speculation is None or speculation.drafted == 0:
            raise StepFailure(
                "the server drafts no tokens, though speculation is configured",
                code="no_drafts",
                cause="/metrics counts no draft tokens after the first completion",
                remedy=Remedy(
                    "run", ("--from", "{step}"), "mtp", "{command}; see the log on the draft model"
                ),
                where=where,
            )
        shared = self.reader.shared_embedding and self.reader.shared_head
        if speculation.accepted == 0 and not shared:
            raise StepFailure(
                f"none of {speculation.drafted} drafted tokens was accepted",
                code="draft_head_uninitialised",
                cause="the log does not say that the draft shares the target's embedding and "
                "head, and the MTP head's own may be uninitialised",
                remedy=Remedy(
                    "run",
                    ("--from", "{step}"),
                    "vllm",
                    "{command}: the build must share them; or add mtp.0.head.weight and "
                    "mtp.0.emb.tok_emb.weight to the checkpoint",
                ),
                where=where,
            )
        return True


def _has_tokens(answer: dict[str, Any]) -> bool:
    try:
        return bool(answer["choices"]) and answer["usage"]["completion_tokens"] > 0
    except (KeyError, TypeError):
        return False


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
            remedy=Remedy("run", ("--from", "{step}"), "weights"),
        ) from error
    except ValueError as error:
        raise StepFailure(
            f"{config} is not JSON",
            code="model_damaged",
            cause=str(error),
            remedy=Remedy("run", ("--from", "{step}"), "mtp"),
        ) from error
    wants_head = speculative_config is not None and speculative_config["method"] == "mtp"
    if wants_head and not values.get("num_nextn_predict_layers"):
        raise StepFailure(
            "the model has no MTP head, though speculation by `mtp` is configured",
            code="no_mtp_head",
            cause="num_nextn_predict_layers of its config.json is 0 or missing",
            remedy=Remedy(
                "run", ("--from", "{step}"), "mtp", "{command}, or set `speculative_config: null`"
            ),
            where=str(config),
        )
