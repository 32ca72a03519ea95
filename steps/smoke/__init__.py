"""Ask the served model, and judge its answers, its drafts and its speed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runbook.files import read_json
from runbook.process import Identity
from runbook.protocol import Check, Context, Model, Reason, StepFailure, Work
from runbook.steps.common import endpoint
from runbook.steps.common.serving import api_key

if TYPE_CHECKING:
    from runbook.steps.smoke.client import Client

RESULT = "smoke/result.json"
SECONDS = 15.0
MEASURED = (
    "decode_tokens_per_second",
    "ttft_seconds",
    "drafted",
    "accepted",
    "acceptance",
    "acceptance_by_position",
    "tokens_per_step",
)


class Smoke:
    """A result is about one process of the server: when that ends, it says nothing any more."""

    version = "1"
    makes_nothing = True
    Inputs = Model("runbook.steps.smoke.models:Inputs")
    Outputs = Model("runbook.steps.smoke.models:Outputs")

    def check(self, ctx: Context) -> Check:
        result = read_json(ctx.workspace / RESULT)
        reason = self._unmet(result, ctx)
        if reason is not None:
            return Check.unsatisfied(reason, work=Work(seconds=SECONDS))
        passed = [outcome["check"] for outcome in result.get("checks", ())]
        outputs = {"model": ctx.inputs.model, **result["measured"], "checks": passed}
        return Check.satisfied(outputs)

    def _unmet(self, result: Any, ctx: Context) -> Reason | None:
        inputs = ctx.inputs
        if not isinstance(result, dict):
            return Reason("not_asked", "the server was not asked yet")
        if result.get("inputs") != vars(inputs):
            return Reason("asked_otherwise", "other questions were asked, or another server")
        if failures := result.get("failures"):
            return Reason("failed_before", f"the server failed {', '.join(failures)}")
        process = Identity.load(inputs.process)
        if process is None or not process.alive():
            return Reason("server_dead", "the server that was asked runs no more")
        address = urlsplit(inputs.endpoint)
        state = endpoint.health(address.hostname or "", address.port or 80)
        if state != "healthy":
            return Reason(f"server_{state}", f"the server is {state} at /health")
        return self._ask_again(inputs) if ctx.deep else None

    def _ask_again(self, inputs: SimpleNamespace) -> Reason | None:
        """The thorough form asks for the models and the echo anew; both take a second."""
        from runbook.steps.smoke import words
        from runbook.steps.smoke.client import Unanswered
        from runbook.steps.smoke.findings import Findings

        found = Findings()
        with _client(inputs) as client:
            try:
                for name, ask in (("models", words.models), ("echo", words.echo)):
                    found.begin(name)
                    ask(client, inputs, found)
            except Unanswered as error:
                return Reason("server_unanswered", str(error))
        return found.failures[0] if found.failures else None

    def apply(self, ctx: Context) -> None:
        from runbook.files import write_json
        from runbook.steps.smoke.ladder import examine

        inputs = ctx.inputs

        def tell(name: str, done: int, total: int) -> None:
            ctx.log(f"ask: {name}")
            ctx.progress(done, total, "checks", name)

        with _client(inputs) as client:
            found = examine(client, inputs, tell)
        measured = dict.fromkeys(MEASURED) | found.measured
        for outcome in found.outcomes:
            verdict = "failed" if outcome.verdicts else "passed"
            ctx.log(f"{outcome.name}: {verdict} in {outcome.seconds:.1f} s: {outcome.evidence}")
        for name, value in measured.items():
            ctx.log(f"{name}: {value}")
        path = ctx.workspace / RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "inputs": vars(inputs),
                "about": inputs.about | {"gpus": _gpus(ctx)},
                "measured": measured,
                "checks": [outcome.dump() for outcome in found.outcomes],
                "failures": [reason.code for reason in found.failures],
            },
        )
        if found.failures:
            for reason in found.failures:
                ctx.log(f"failed: {reason.code}: {reason.message}")
            first = found.failures[0]
            raise StepFailure(
                "the served model fails: " + ", ".join(r.code for r in found.failures),
                code="smoke_failed",
                cause="\n".join(r.message for r in found.failures),
                remedy=first.remedy,
                where=inputs.endpoint,
                reasons=found.failures,
            )

    def undo(self, ctx: Context) -> None:
        path = ctx.workspace / RESULT
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _client(inputs: SimpleNamespace) -> Client:
    from runbook.steps.smoke.client import Client

    key = api_key(inputs.api_key_file, StepFailure)
    return Client(inputs.endpoint, inputs.model, inputs.request_timeout, key)


def _gpus(ctx: Context) -> list[dict[str, Any]]:
    """What the result holds for: cards, driver, power limit."""
    kept = ("name", "driver", "power_limit")
    return [{k: gpu[k] for k in kept if k in gpu} for gpu in ctx.facts.get("gpus", [])]
