"""One point of a benchmark: warm up, and measure repetitions of so many streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import runbook
from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.common import nvml
from runbook.steps.common.metrics import Speculation, counter
from runbook.steps.common.power import Sampler
from runbook.steps.measure import figures, prompts, streams
from runbook.steps.measure.served import Served

RUNNING = "vllm:num_requests_running"
QUIET_SECONDS = 10.0
SETTLE_SECONDS = 3.0
POLL = 0.2
SEED = 20_000
"""Repetition n is asked with the seed SEED + n, the warm-up with SEED - 1: other texts each, and
the same ones whenever they are asked again."""
MOST_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` in each repetition, `streams` of them at once."""

    asked: prompts.Asked
    streams: int
    requests: int
    repetitions: int
    warm_up: int

    def about(self) -> dict[str, Any]:
        asked = self.asked
        return {
            "prompts": asked.kind if asked.file is None else str(asked.file),
            "input_length": asked.input_length,
            "output_length": asked.output_length,
            "ignore_eos": asked.ignore_eos,
            "thinking": asked.thinking,
            "concurrency": self.streams,
            "requests": self.requests,
        }


def surroundings(served: Served) -> dict[str, Any]:
    """What a result holds for, besides what is known of the server."""
    seen = nvml.survey()
    kept = ("index", "name", "power_limit", "memory")
    return {
        "kind": "about",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runbook": runbook.__version__,
        "vllm": served.ask("/version").get("version"),
        "driver": seen["driver"],
        "gpus": [
            {name: gpu[name] for name in kept} for gpu in nvml.visible(seen["gpus"], served.devices)
        ],
    }


def measure(served: Served, load: Load, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Each repetition as it is known, then the point of them all."""
    asked = load.about()
    _require_quiet(served)
    tell(f"{load.streams} streams: warm up with {load.warm_up} requests")
    warm = prompts.requests(served, load.asked, load.warm_up, SEED - 1)
    answers, _ = send(served, warm, load.streams)
    if failed := [answer.error for answer in answers if answer.error]:
        served.require_alive()
        raise StepFailure(
            f"{len(failed)} of {len(answers)} requests of the warm-up failed",
            code="requests_failed",
            cause=failed[0],
            remedy="ask for what the server can answer: shorter texts, or another class of prompts",
            where=served.endpoint,
        )
    done = []
    for number in range(load.repetitions):
        one = {"kind": "repetition", "asked": asked} | repetition(served, load, number)
        done.append(one)
        tell(
            f"{load.streams} streams: {one['output_tokens_per_second']:.1f} tokens/s, "
            f"{number + 1} of {load.repetitions}"
        )
        yield one
    shown = [{k: v for k, v in one.items() if k not in ("kind", "asked")} for one in done]
    yield {"kind": "point", "asked": asked, **figures.summary(done), "repetitions": shown}


def repetition(served: Served, load: Load, number: int) -> dict[str, Any]:
    made = prompts.requests(served, load.asked, load.requests, SEED + number)
    before = _counters(served)
    with Sampler(served.devices) as sampler:
        answers, took = send(served, made, load.streams)
    served.require_alive()
    errors = [answer.error for answer in answers if answer.error]
    return {
        **figures.figures(answers, took.seconds),
        "speculation": figures.speculation(before, _counters(served)),
        "gpus": sampler.gpus,
        "requests_digest": prompts.digest(made),
        # Of one core: far below 1, or it is the client that was measured.
        "client_cpu": round(took.processor / took.seconds, 4),
        "errors": errors[:MOST_ERRORS],
    }


def send(
    served: Served, made: list[tuple[str, bytes]], count: int
) -> tuple[list[streams.Answer], streams.Took]:
    done, took = streams.run(served.endpoint, made, count, served.headers())
    return [streams.read(stream) for stream in done], took


def _counters(served: Served) -> Speculation | None:
    """The counters of drafts once they stand still: they follow the last answer by some moments."""
    deadline = time.monotonic() + SETTLE_SECONDS
    found = Speculation.read(served.ask("/metrics"))
    while found is not None and time.monotonic() < deadline:
        time.sleep(POLL)
        again = Speculation.read(served.ask("/metrics"))
        if again == found:
            break
        found = again
    return found


def _require_quiet(served: Served) -> None:
    """Raises PreconditionNotMet if the server goes on answering others: that would count."""
    deadline = time.monotonic() + QUIET_SECONDS
    while running := int(counter(served.ask("/metrics"), RUNNING) or 0):
        if time.monotonic() > deadline:
            raise PreconditionNotMet(
                f"the server answers {running} requests of others",
                code="server_busy",
                cause="what they take is missing in what is measured",
                remedy="wait until they have ended, then measure",
                where=served.endpoint,
            )
        time.sleep(POLL)
