"""The attempts of a run that work now: started, heard, held to their limits, tried again."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runbook.errors import FAILED, PRECONDITION, error_dict
from runbook.execution.outcome import Outcome, stopped
from runbook.execution.recording import Recorder
from runbook.files import read_regular
from runbook.planning.look import Look
from runbook.process import Identity
from runbook.remedy import Remedy, dump

if TYPE_CHECKING:
    from runbook.document.compiled import Step

# A progress event is written at most this often (seconds), and for at least this part of the
# total; a listener is told of each.
PROGRESS_SECONDS = 5.0
PROGRESS_PART = 0.01
MOST_BACKOFF = 600.0
# What attempts are given to end by themselves when the run is stopped, in seconds.
STOP_GRACE = 10.0
CONTINUES = Remedy("run", text="{command} continues")


class Attempt(Protocol):
    """What is asked of an attempt: that of `attempt.py`, or one without processes."""

    look: Look
    step: str
    number: int
    log: Path
    events: int
    """A descriptor that becomes readable when it has told something or has ended."""
    identity: Identity | None
    result: dict[str, Any] | None
    unheard: list[Mapping[str, Any]]
    """What it told while it was stopped."""

    @property
    def seconds(self) -> float: ...
    def messages(self) -> tuple[list[Mapping[str, Any]], bool]: ...
    def silent_for(self) -> float: ...
    def processes(self) -> list[int]: ...
    def stop(self, grace: float = ..., hurry: Callable[[], bool] = ...) -> list[int]: ...
    def finish(self) -> list[int]: ...
    def failure(self) -> dict[str, Any]: ...


Start = Callable[[Look, int, Path, bool], Attempt]
"""Starts the attempt of a number, in the folder of a run, forced or not."""
Verified = Callable[[Look, Mapping[str, Any], int, float], None]
"""Is told of outputs, the attempt's number and its seconds when a step has been verified."""


class Attempts:
    def __init__(
        self,
        record: Recorder,
        outcome: Outcome,
        start: Start,
        verified: Verified,
        on_progress: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self.record = record
        self.outcome = outcome
        self.on_progress = on_progress
        self.running: dict[int, Attempt] = {}
        self.hurry = False
        """Whether what is to be stopped is to be given no time for it."""
        self.retry_at: dict[str, float] = {}
        self.numbers: dict[str, int] = {}
        self._begin = start
        self._verified = verified
        self._last_progress: dict[str, tuple[float, float]] = {}
        self._said: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()

    def busy(self, name: str) -> bool:
        """Whether a step has an attempt, or waits for its next one."""
        return name in self.retry_at or any(a.step == name for a in self.running.values())

    def start(self, look: Look) -> None:
        run = self.record.open()
        name = look.step["id"]
        self._said.pop(name, None)
        number = self.numbers[name] = self.numbers.get(name, 0) + 1
        self.record.begun(look, number)
        forced = name in self.outcome.selection.forced or bool(look.remade())
        attempt = self._begin(look, number, run, forced)
        process = attempt.identity
        self.record.event(
            "attempt.started",
            step=name,
            attempt=number,
            log=str(attempt.log),
            process=process.dump() if process is not None else None,
        )
        self.running[attempt.events] = attempt
        self._selector.register(attempt.events, selectors.EVENT_READ)

    def listen(self, wakeup: int) -> None:
        """Wait for what attempts tell, the time of a retry, a limit (looked at once a second) or
        a byte from `wakeup`, and act on it."""
        waits = [when - time.monotonic() for when in self.retry_at.values()]
        if wakeup not in self._selector.get_map():
            self._selector.register(wakeup, selectors.EVENT_READ)
        for key, _ in self._selector.select(max(0.0, min([1.0, *waits]))):
            if key.fd in self.running:
                self._hear(self.running[key.fd])
            else:
                os.read(key.fd, 512)
        for attempt in list(self.running.values()):
            self._check_limits(attempt)
        for name in [s for s, when in self.retry_at.items() if when <= time.monotonic()]:
            del self.retry_at[name]

    def stop_all(self) -> None:
        """On the way out by a signal or a defect: end every attempt, then say so."""
        for attempt in self.running.values():
            for pid in attempt.processes():
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    continue
        deadline = time.monotonic() + STOP_GRACE
        for attempt in list(self.running.values()):
            self._forget(attempt)
            grace = max(0.0, deadline - time.monotonic())
            left = attempt.stop(grace, lambda: self.hurry)
            os.close(attempt.events)
            if attempt.result is not None and attempt.result["type"] == "result":
                self._conclude(attempt, left)
                continue
            error = error_dict(
                "cancelled",
                "cancelled",
                cause="; ".join([stopped(self.outcome.stopped_by), *self._last_notices(attempt)]),
                remedy=CONTINUES,
                retryable=True,
                log=str(attempt.log),
            )
            self._fail(attempt, error, left)

    def _last_notices(self, attempt: Attempt) -> list[str]:
        """What an attempt had to tell people while it was stopped."""
        notices = [m["message"] for m in attempt.unheard if m["type"] == "notice"]
        for notice in notices:
            fields = {"step": attempt.step, "attempt": attempt.number}
            self.record.event("attempt.notice", **fields, message=notice)
        return notices

    def _hear(self, attempt: Attempt) -> None:
        messages, ended = attempt.messages()
        for message in messages:
            if message["type"] == "notice":
                fields = {"step": attempt.step, "attempt": attempt.number}
                self.record.event("attempt.notice", **fields, message=message["message"])
                self._said[attempt.step] = message["message"]
                continue
            if message["message"]:
                self._said[attempt.step] = message["message"]
            self.on_progress(attempt.step, message)
            self._record_progress(attempt, message)
        if ended:
            self._forget(attempt)
            left = attempt.finish()
            self._conclude(attempt, left)

    def _forget(self, attempt: Attempt) -> None:
        del self.running[attempt.events]
        self._selector.unregister(attempt.events)

    def _record_progress(self, attempt: Attempt, message: Mapping[str, Any]) -> None:
        moment = time.monotonic()
        when, done = self._last_progress.get(attempt.step, (0.0, -1.0))
        total = message["total"] or 0
        if moment - when < PROGRESS_SECONDS and (
            moment - when < 0.5 or not total or message["done"] - done < total * PROGRESS_PART
        ):
            return
        self._last_progress[attempt.step] = (moment, message["done"])
        fields = {key: message[key] for key in ("done", "total", "unit", "message", "items")}
        self.record.event("attempt.progress", step=attempt.step, attempt=attempt.number, **fields)

    def _check_limits(self, attempt: Attempt) -> None:
        error = _exceeded(attempt, self._said.get(attempt.step, ""))
        if error is not None:
            self._forget(attempt)
            left = attempt.stop()
            os.close(attempt.events)
            self._fail(attempt, error, left)

    def _conclude(self, attempt: Attempt, left: list[int]) -> None:
        result = attempt.result
        if result is None or result["type"] != "result":
            error = attempt.failure()
            if error["code"] == "cancelled":  # nobody asked us for it
                message = "the step's process was terminated from outside"
                error |= {"code": "terminated", "message": message, "remedy": dump(CONTINUES)}
            self._fail(attempt, error, left)
            return
        outputs = result["outputs"]
        remarks = [r for r in result["reasons"] if r["severity"] != "error"]
        self.record.event(
            "attempt.succeeded",
            step=attempt.step,
            attempt=attempt.number,
            seconds=attempt.seconds,
            outputs=outputs,
            reasons=remarks,
        )
        self._verified(attempt.look, outputs, attempt.number, attempt.seconds)
        entry = self.outcome.steps[attempt.step]
        entry["state"] = "satisfied"
        entry["seconds"] = attempt.seconds
        entry["reasons"] = [*entry["reasons"], *remarks]

    def _fail(self, attempt: Attempt, error: dict[str, Any], left: list[int]) -> None:
        name = attempt.step
        if left:
            error["cause"] += f"\nprocesses {left} could not be ended"
        result = attempt.result or {}
        exit_code = result.get("exit_code", FAILED)
        delay = _retry_in(attempt.look.step, attempt.number, error, exit_code)
        self.record.event(
            "attempt.failed",
            step=name,
            attempt=attempt.number,
            seconds=attempt.seconds,
            error=error,
            retry_in=delay,
        )
        if delay is not None:
            self.record.event("step.waiting", step=name, state="retrying", seconds=delay)
            self.retry_at[name] = time.monotonic() + delay
            return
        entry = self.outcome.steps[name]
        entry.update(
            state="cancelled" if error["code"] == "cancelled" else "failed",
            seconds=attempt.seconds,
            error=error,
            exit_code=exit_code,
        )
        if result.get("reasons"):
            entry["reasons"] = result["reasons"]


def _exceeded(attempt: Attempt, said: str) -> dict[str, Any] | None:
    """The error of an attempt that has exceeded a limit; None if it has not. What it last said is
    what it waited for."""
    step = attempt.look.step
    limit, stall = step["timeout"], step["stall"]
    if limit is not None and attempt.seconds > limit:
        code = "timeout"
        message = f"took longer than its time limit of {limit:g} s"
        setting = "timeout"
    elif stall is not None and attempt.silent_for() > stall:
        code = "stalled"
        message = f"neither printed nor progressed for {stall:g} s"
        setting = "stall"
    else:
        return None
    cause = f"it last said: {said}" if said else tail(attempt.log, 3)
    log = str(attempt.log)
    words = f"its log tells what hangs; if it only is slow, raise `{setting}` of the step; then "
    remedy = Remedy("run", text=f"{words}{{command}}")
    return error_dict(code, message, cause=cause, remedy=remedy, retryable=True, log=log)


def _retry_in(step: Step, attempt: int, error: Mapping[str, Any], exit_code: int) -> float | None:
    """Seconds until the next attempt after one that failed; None if there is to be none."""
    retry = step["retry"]
    hopeless = exit_code == PRECONDITION or not error["retryable"] or error["code"] == "cancelled"
    if hopeless or attempt >= retry["attempts"]:
        return None
    return float(min(MOST_BACKOFF, retry["backoff"] * 2 ** (attempt - 1)))


def tail(log: Path, lines: int = 10) -> str:
    """The last lines of a log."""
    data = read_regular(log, 8192, tail=True) or b""
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])
