"""Wait until a started vLLM has answered its first completion, or has certainly failed."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps import MODEL
from runbook.steps.common import jit, startup
from runbook.steps.common.diagnoses import root_error
from runbook.steps.common.metrics import Speculation, engine_steps
from runbook.steps.common.service import Service
from runbook.steps.common.starting import vllm
from runbook.steps.serve import key
from runbook.steps.serve.api import Api, Unanswered

SETTLE_SECONDS = 5.0
"""How long an engine's death may take to show after its first request was answered by an error."""
MOST_REQUESTS = 50
"""Completions, at most, until enough tokens were drafted to judge them."""
NEAR_LIMIT = 0.9
LONG_ANSWER = 16
"""Tokens generated for a prompt near the limit."""
LEAST_VOCABULARY = 1000
BACKEND = re.compile(r"Using '\w+'[\w ]* MoE backend")


class Startup(vllm.Startup):
    """Follows one start of `vllm serve` to its first completion, and what else must go well."""

    def __init__(self, ctx: Context, inputs: SimpleNamespace, running: Service) -> None:
        super().__init__(ctx, running, inputs.start_timeout)
        self.inputs = inputs
        self.api = Api(inputs.host, inputs.port, key.read(key.path(running.folder, inputs)))
        self.serves = False
        self.unproven: list[str] = list(inputs.proof)
        self.backends: set[str] = set()

    def wait(self) -> dict[str, Any]:
        """What was learnt of the server. Raises StepFailure if it will not become ready."""
        try:
            return self._wait()
        finally:
            self.close()

    def _wait(self) -> dict[str, Any]:
        self.until(self.api.healthy)
        self._require_model()
        self.enter("first_request")
        self.serves = True
        self._first_completion()
        self.look()
        drafts = self._require_drafts()
        longest = self._near_limit()
        reader = self.reader
        return {
            "kv_cache_tokens": reader.kv_cache_tokens,
            "max_concurrency": reader.max_concurrency,
            "draft_head_shared": reader.draft_shares if self._drafts() else None,
            **drafts,
            "near_limit_tokens": longest,
            "unproven": self.unproven,
            "backends": sorted(self.backends),
            **self._seconds(),
        }

    def _seconds(self) -> dict[str, Any]:
        phases = self.clock.end()
        spec = self.running.spec
        seconds = round(sum(phases.values()), 1)
        return {"phases": phases, **jit.Starts(spec).add(seconds, first=bool(spec.get("first")))}

    def take(self, line: str) -> None:
        super().take(line)
        self.unproven = [words for words in self.unproven if words not in line]
        if (told := BACKEND.search(line)) is not None:
            self.backends.add(told[0])

    def steps(self) -> int:
        if not self.serves:
            return 0
        try:
            return engine_steps(self.api.metrics())
        except Unanswered:
            return 0

    def _drafts(self) -> bool:
        return self.inputs.speculative_config is not None

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
        if failure.code == "first_completion_failed" and root_error("\n".join(self.lines)) is None:
            failure.cause = str(answer)[:600]
        raise failure

    def _near_limit(self) -> int | None:
        """Tokens of a prompt near the context's limit, which was answered; None if none was asked.
        Some servers start, answer, and die of their first long prompt."""
        share = self.inputs.near_limit
        if share is None:
            share = NEAR_LIMIT if self.ctx.facts.get("gpus") else 0
        limit = self.api.models()[0].get("max_model_len") if share else None
        if limit is None:
            return None
        self.enter("near_limit")
        tokens = min(int(share * limit) - LONG_ANSWER, self.inputs.near_limit_tokens)
        prompt = long_prompt(tokens, Path(self.inputs.model))
        self.ctx.log(f"ask with a prompt of {tokens} tokens; the limit is {limit}")
        request = {
            "model": self.inputs.served_model_name,
            "prompt": prompt,
            "max_tokens": LONG_ANSWER,
            "temperature": 0,
        }
        answer = self._ask("/v1/completions", request)
        if isinstance(answer, dict) and _has_tokens(answer):
            return len(prompt)
        self._settle()
        failure = self.failure(f"a prompt of {tokens} tokens fails", "near_limit_failed")
        if failure.code == "near_limit_failed":
            failure.cause = f"{str(answer)[:600]}\n{failure.cause}".strip()
            failure.remedy = Remedy(
                "run",
                text="lower max_model_len, or gpu_memory_utilization by 0.02, or "
                "max_num_batched_tokens of the step; then {command}",
            )
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

    def _require_drafts(self) -> dict[str, Any]:
        """Speculation must happen where it is configured, and be accepted as the book says: a head
        that is missing, or whose embedding is uninitialised, gives perfect answers and no error."""
        if not self._drafts():
            return {"drafted": None, "accepted": None}
        want = self.inputs.drafts
        least = None if want["chance"] else want["min_acceptance"]
        counts = self._counts()
        for _ in range(MOST_REQUESTS):
            if least is None or counts.drafted >= want["least_tokens"]:
                break
            self._first_completion()
            counts = self._counts()
        if least is not None:
            self._judge_drafts(counts, least)
        return {"drafted": counts.drafted, "accepted": counts.accepted}

    def _counts(self) -> Speculation:
        counts = Speculation.read(self.api.metrics())
        if counts is None or counts.drafted == 0:
            raise StepFailure(
                "the server drafts no tokens, though speculation is configured",
                code="no_drafts",
                cause="/metrics counts no draft tokens after the first completion",
                remedy=Remedy(
                    "run", ("--from", "{step}"), MODEL, "{command}; see the log on the draft model"
                ),
                where=str(self.running.log),
            )
        return counts

    def _judge_drafts(self, counts: Speculation, least: float) -> None:
        if counts.accepted >= least * counts.drafted:
            return
        raise StepFailure(
            f"{counts.accepted} of {counts.drafted} drafted tokens were accepted, "
            f"expected {least:.0%} or more",
            code="drafts_rejected",
            cause="the draft head, its embedding or its quantisation is damaged, or was not loaded",
            remedy=Remedy(
                "run",
                ("--from", "{step}"),
                MODEL,
                "{command}; if the head's weights are random on purpose, set `drafts: {chance: "
                "true}` of the serve step",
            ),
            where=str(self.running.log),
        )


def long_prompt(tokens: int, model: Path) -> list[int]:
    """As many ids of ordinary tokens, drawn anew but always the same: special ones are at the ends
    of a vocabulary."""
    size = json.loads((model / "config.json").read_bytes()).get("vocab_size") or LEAST_VOCABULARY
    draw = random.Random(tokens)
    return draw.choices(range(size // 8, size - size // 8), k=max(1, tokens))


def _has_tokens(answer: dict[str, Any]) -> bool:
    try:
        return bool(answer["choices"]) and answer["usage"]["completion_tokens"] > 0
    except (KeyError, TypeError):
        return False
