"""Carries out a plan: decides each step when its needs are met, runs attempts side by side,
verifies, records. One thread, one loop; the work is in the attempts' processes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from runbook.execution.attempts import Attempt, Attempts
from runbook.execution.deciding import Decider
from runbook.execution.outcome import ENDED, SETTLED, Outcome
from runbook.execution.recording import Recorder
from runbook.execution.signals import Signals
from runbook.planning.asking import WATCH, Stopped
from runbook.planning.evaluate import Evaluator
from runbook.planning.look import Look
from runbook.planning.planner import Selection, considered
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book, Step

StartAttempt = Callable[[Look, int, Path, Workspace, int, bool], Attempt]


def start_attempt(
    look: Look, number: int, run: Path, workspace: Workspace, lock: int, forced: bool
) -> Attempt:
    """Start the processes of an attempt. What only runs that do something need, begins here: the
    import of what starts processes, and the collector of garbage, without which the program
    starts because most runs end before there is any."""
    from runbook.execution.attempt import Attempt

    gc.enable()
    return Attempt(look, number, run, workspace, lock, forced=forced)


class Executor:
    """One run. `execute` returns its exit code; `outcome` then says how each step ended.
    `approved` names steps whose questions are approved, each with the question's digest, or "".

    `at_once`: record the run before anything is decided, so that who started it can follow it.
    `attempt` starts one; tests give another.
    """

    def __init__(
        self,
        book: Book,
        workspace: Workspace,
        selection: Selection,
        lock: int,
        *,
        jobs: int = 2,
        approved: Mapping[str, str] = MappingProxyType({}),
        approve_all: bool = False,
        at_once: bool = False,
        listener: Callable[[dict[str, Any]], None] = lambda event: None,
        on_progress: Callable[[str, Mapping[str, Any]], None] = lambda step, message: None,
        attempt: StartAttempt = start_attempt,
    ) -> None:
        self.jobs = jobs
        self.at_once = at_once
        self.selection = selection
        self._book = book
        self.evaluator = Evaluator(book, workspace)
        self.outcome = Outcome([step["id"] for step in book["steps"]], selection)
        self.record = Recorder(book, workspace, lock, listener)
        self.decider = Decider(self.evaluator, self.record, self.outcome, approved, approve_all)
        self.attempts = Attempts(
            self.record,
            self.outcome,
            lambda look, number, run, forced: attempt(look, number, run, workspace, lock, forced),
            self._verified,
            on_progress,
        )
        self._pending: list[Step] = considered(book["steps"], selection)

    def execute(self) -> int:
        ahead = [step for step in self._pending if step["id"] in self.selection.runnable]
        self.record.begin([step["id"] for step in ahead], self.selection)
        self.decider.ahead = ahead
        if self.at_once:
            self.record.open()
        signals = Signals(self._stop)
        attempts = self.attempts
        try:
            while not self.outcome.stopped_by:
                self._advance()
                if self.decider.approve():
                    self._pending = considered(self._book["steps"], self.selection)
                elif attempts.running or attempts.retry_at:
                    attempts.listen(signals.wakeup)
                else:
                    break
        except Stopped:
            pass  # in the middle of a check, which is left
        finally:
            attempts.stop_all()
            signals.close()
            WATCH.stopped = False
        code = self.outcome.exit_code()
        if self.record.run is None and not self.outcome.stopped_by:
            self.record.supersede()
        self.record.finish(code, self.outcome)
        return code

    def _stop(self, number: int) -> None:
        self.attempts.hurry = bool(self.outcome.stopped_by)  # asked twice
        self.outcome.stopped_by = self.outcome.stopped_by or number
        WATCH.stop()

    def _advance(self) -> None:
        """Decide every step whose needs have ended, and start what should run."""
        steps, attempts = self.outcome.steps, self.attempts
        rest: list[Step] = []
        # Needs point backwards: one pass in document order reaches everything.
        for step in self._pending:
            name = step["id"]
            if name in steps and steps[name]["state"] != "running":
                continue
            ended = True
            blockers = []
            for need in step["needs"]:
                state = steps[need]["state"] if need in steps else ""
                if state in ENDED:
                    blockers.append(need)
                elif state not in SETTLED:
                    ended = False
            if blockers:
                self.decider.block(step, blockers)
                continue
            busy = (attempts.running or attempts.retry_at) and attempts.busy(name)
            full = len(attempts.running) >= self.jobs
            if self.outcome.stopped_by or not ended or busy or full:
                rest.append(step)
                continue
            look = self.decider.decide(step, again=name in attempts.numbers)
            if look is not None:
                attempts.start(look)
                rest.append(step)
        self._pending = rest

    def _verified(
        self, look: Look, outputs: Mapping[str, Any], attempt: int, seconds: float
    ) -> None:
        name = look.step["id"]
        made = self.record.made_by(look, attempt)
        known = self.evaluator.record_outputs(name, outputs, made=made)
        self.record.checkpoint(look, outputs, known, made, attempt, seconds)
