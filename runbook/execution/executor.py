"""Carries out a plan: decides each step when its needs are met, runs attempts side by side,
verifies, records. One thread, one loop; the work is in the attempts' processes."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runbook
from runbook.errors import APPROVAL, CANCELLED, DONE, FAILED, PRECONDITION
from runbook.planning.evaluate import Evaluator, Look
from runbook.planning.planner import Decision, Selection, considered, decide
from runbook.protocol import Reason
from runbook.redact import Redactor
from runbook.state.history import RunRecord, last_attempt
from runbook.state.journal import Journal, now
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.execution.attempt import Attempt

# A progress event is written at most this often (seconds), and for at least this part of the
# total; a listener is told of each.
PROGRESS_SECONDS = 5.0
PROGRESS_PART = 0.01
# The signal that `runbook cancel` sends, to be told apart from SIGTERM by init or a shell.
CANCEL_SIGNAL = signal.SIGUSR1
STOP_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, CANCEL_SIGNAL: CANCELLED}
SETTLED = frozenset({"satisfied", "inactive"})
ENDED = frozenset({"failed", "blocked", "waiting", "unmet", "cancelled"})
MOST_BACKOFF = 600.0
# What attempts are given to end by themselves when the run is stopped, in seconds.
STOP_GRACE = 10.0


class Executor:
    """One run. `execute` returns its exit code; `steps` then says how each step ended.

    `command` makes a command line for remedies, of a verb and its arguments, for the same book.
    """

    def __init__(
        self,
        book: Mapping[str, Any],
        workspace: Workspace,
        selection: Selection,
        lock: int,
        *,
        command: Callable[..., str],
        jobs: int = 2,
        approved: Collection[str] = (),
        approve_all: bool = False,
        listener: Callable[[dict[str, Any]], None] = lambda event: None,
        on_progress: Callable[[str, Mapping[str, Any]], None] = lambda step, message: None,
    ) -> None:
        self.book = book
        self.workspace = workspace
        self.selection = selection
        self.lock = lock
        self.command = command
        self.jobs = jobs
        self.approved = approved
        self.approve_all = approve_all
        self.redactor = Redactor(book["secrets"])
        self.journal = Journal(self.redactor, listener)
        self.on_progress = on_progress
        self.evaluator = Evaluator(book, workspace)
        self.run: Path | None = None
        self.stopped_by = 0
        self.steps: dict[str, dict[str, Any]] = {}
        workspace.read_index(len(book["steps"]))
        self._by_id = {step["id"]: step for step in book["steps"]}
        self._pending = considered(book["steps"], selection)
        self._running: dict[int, Attempt] = {}
        self._retry_at: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
        self._last_progress: dict[str, tuple[float, float]] = {}
        self._history: dict[str, Any] | None = None
        self._rendered: dict[str, Any] = {}
        self._selector = selectors.DefaultSelector()

    # The loop --------------------------------------------------------------------------------

    def execute(self) -> int:
        self.journal.append(
            "run.started",
            book=self.book["name"],
            source=self.book["source"],
            inputs=self.book["inputs"],
            workspace=str(self.workspace.root),
            package=runbook.__version__,
            runnable=[s["id"] for s in self._pending if s["id"] in self.selection.runnable],
            forced=sorted(self.selection.forced),
        )
        previous = self._listen_to_signals()
        try:
            self._advance()
            self._loop()
        finally:
            self._stop_all()
            self._restore_signals(previous)
        code = self._exit_code()
        if self.run is not None:
            self._write_rendered()
            self.journal.append("run.finished", exit_code=code, ok=code == DONE, error=self.error())
        self.journal.close()
        self.workspace.write_index(list(self._by_id))
        return code

    def _loop(self) -> None:
        while (self._running or self._retry_at) and not self.stopped_by:
            for key, _ in self._selector.select(self._patience()):
                if key.fd in self._running:
                    self._hear(self._running[key.fd])
                else:
                    os.read(key.fd, 512)
            for attempt in list(self._running.values()):
                self._check_limits(attempt)
            due = [s for s, when in self._retry_at.items() if when <= time.monotonic()]
            for step in due:
                del self._retry_at[step]
            self._advance()

    def _patience(self) -> float:
        """How long to sleep when nothing happens: limits are looked at once a second."""
        waits = [when - time.monotonic() for when in self._retry_at.values()]
        return max(0.0, min([1.0, *waits]))

    def _listen_to_signals(self) -> dict[int, Any]:
        def note(number: int, frame: object) -> None:
            self.stopped_by = self.stopped_by or number

        previous: dict[int, Any] = {n: signal.signal(n, note) for n in STOP_CODES}
        self._wakeup, alarm = os.pipe()
        os.set_blocking(alarm, False)
        signal.set_wakeup_fd(alarm)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        return previous

    def _restore_signals(self, previous: dict[int, Any]) -> None:
        alarm = signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(alarm)
        os.close(self._wakeup)

    # Deciding --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Decide every step whose needs have ended, and start what should run."""
        steps = self.steps
        rest: list[Mapping[str, Any]] = []
        # Needs point backwards: one pass in document order reaches everything.
        for step in self._pending:
            name = step["id"]
            ended = True
            blockers = []
            for need in step["needs"]:
                state = steps[need]["state"] if need in steps else ""
                if state in ENDED:
                    blockers.append(need)
                elif state not in SETTLED:
                    ended = False
            if blockers:
                self._block(step, blockers)
                continue
            busy = name in self._retry_at or (self._running and self._is_running(name))
            full = len(self._running) >= self.jobs
            if self.stopped_by or not ended or busy or full or not self._decide(step):
                rest.append(step)
        self._pending = rest

    def _is_running(self, name: str) -> bool:
        return any(attempt.step == name for attempt in self._running.values())

    def _decide(self, step: Mapping[str, Any]) -> bool:
        """Whether the step's part in this run has ended with the decision."""
        name = step["id"]
        look = self.evaluator.look(step)
        self._rendered[name] = look.raw
        if name in self._numbers and look.inputs is not None:  # a retry, decided before
            self._start(look)
            return False
        if not look.active:
            self.journal.append("step.decided", step=name, decision="inactive", reasons=[])
            self._end(name, "inactive", "inactive", ())
            self.evaluator.record_outputs(name, {})
            return True
        decision = self._decision(look)
        if decision.verb == "skip":
            record = look.checkpoint
            known = record["outputs_digest"] if record is not None else ""
            same = record is not None and record["outputs"] == look.check.outputs
            self.evaluator.record_outputs(name, look.check.outputs, known if same else "")
            self._end(name, "satisfied", "skip", (*decision.reasons, *look.check.reasons))
            reasons = self.steps[name]["reasons"]
            self.journal.append("step.satisfied", step=name, decision="skip", reasons=reasons)
            return True
        fields: dict[str, Any] = {
            "decision": decision.verb,
            "reasons": [r.dump() for r in decision.reasons],
        }
        self._open()
        if decision.verb == "adopt":
            self.journal.append("step.satisfied", step=name, **fields)
            self._checkpoint(look, look.check.outputs, 0, 0.0)
            self._end(name, "satisfied", "adopt", (*decision.reasons, *look.check.reasons))
            return True
        work = look.check.work.dump()
        self.journal.append("step.decided", step=name, work=work, **fields)
        if decision.verb == "unmet":
            self._end(name, "unmet", "unmet", decision.reasons)
            return True
        if look.inputs is None:
            self._refuse(look)
            return True
        if step["approve"] is not None and not (self.approve_all or name in self.approved):
            question = self.evaluator.approval(step, look.check)
            self.journal.append("step.waiting", step=name, state="waiting", question=question)
            self._end(name, "waiting", "run", decision.reasons, question=question)
            return True
        self._end(name, "running", "run", decision.reasons)
        self._start(look)
        return False

    def _decision(self, look: Look) -> Decision:
        name = look.step["id"]
        forced, runnable = name in self.selection.forced, name in self.selection.runnable
        before = "" if look.check.ok else last_attempt(self._last(name))
        return decide(look.view(forced=forced, runnable=runnable, last_attempt=before))

    def _refuse(self, look: Look) -> None:
        """A step whose inputs cannot be rendered or validated fails without an attempt."""
        name = look.step["id"]
        first = look.check.reasons[0]
        error = {
            "code": first.code,
            "message": first.message,
            "cause": "",
            "remedy": first.remedy,
            "retryable": False,
            "where": f"{self.book['source']}:{look.step['line']}",
            "log": "",
        }
        self.journal.append("attempt.failed", step=name, attempt=0, seconds=0.0, error=error)
        self._end(name, "failed", "run", look.check.reasons, error=error, exit_code=FAILED)

    def _block(self, step: Mapping[str, Any], blockers: list[str]) -> None:
        self._open()
        waits = all(self.steps[need]["state"] == "waiting" for need in blockers)
        self.journal.append("step.blocked", step=step["id"], needs=blockers)
        self._end(
            step["id"],
            "blocked",
            "later",
            (Reason("needs", f"needs {', '.join(blockers)}", "", "warning" if waits else "error"),),
        )

    def _end(
        self, name: str, state: str, decision: str, reasons: Collection[Reason], **more: Any
    ) -> None:
        self.steps[name] = {
            "id": name,
            "state": state,
            "decision": decision,
            "reasons": [r.dump() for r in reasons],
            **more,
        }

    # Attempts --------------------------------------------------------------------------------

    def _start(self, look: Look) -> None:
        from runbook.execution.attempt import Attempt  # starts processes, which costs imports

        gc.enable()  # the program starts without: most runs end before there is garbage
        run = self._open()
        name = look.step["id"]
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        forced = name in self.selection.forced
        attempt = Attempt(look, number, run, self.workspace, self.lock, deep=forced)
        process = attempt.identity
        self.journal.append(
            "attempt.started",
            step=name,
            attempt=number,
            log=str(attempt.log),
            process=process.dump() if process is not None else None,
        )
        self._running[attempt.events] = attempt
        self._selector.register(attempt.events, selectors.EVENT_READ)

    def _hear(self, attempt: Attempt) -> None:
        messages, ended = attempt.messages()
        for message in messages:
            if message["type"] == "notice":
                fields = {"step": attempt.step, "attempt": attempt.number}
                self.journal.append("attempt.notice", **fields, message=message["message"])
                continue
            self.on_progress(attempt.step, message)
            self._record_progress(attempt, message)
        if ended:
            self._forget(attempt)
            left = attempt.finish()
            self._conclude(attempt, left)

    def _forget(self, attempt: Attempt) -> None:
        del self._running[attempt.events]
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
        self.journal.append("attempt.progress", step=attempt.step, attempt=attempt.number, **fields)

    def _check_limits(self, attempt: Attempt) -> None:
        step = attempt.look.step
        limit, stall = step["timeout"], step["stall"]
        error = None
        if limit is not None and attempt.seconds > limit:
            error = {
                "code": "timeout",
                "message": f"took longer than its time limit of {limit:g} s",
                "remedy": f"raise `timeout` of step {attempt.step}, or see its log for what hangs",
            }
        elif stall is not None and attempt.silent_for() > stall:
            error = {
                "code": "stalled",
                "message": f"neither printed nor progressed for {stall:g} s",
                "remedy": f"see its log for what hangs, or raise `stall` of step {attempt.step}",
            }
        if error is not None:
            self._forget(attempt)
            left = attempt.stop()
            os.close(attempt.events)
            more = {"cause": "", "retryable": True, "where": "", "log": str(attempt.log)}
            self._fail(attempt, {**error, **more}, left)

    def _conclude(self, attempt: Attempt, left: list[int]) -> None:
        result = attempt.result
        if result is None or result["type"] != "result":
            error = attempt.failure()
            if error["code"] == "cancelled":  # nobody asked us for it
                error |= {
                    "code": "terminated",
                    "message": "the step's process was terminated from outside",
                    "remedy": "`runbook run` continues",
                }
            self._fail(attempt, error, left)
            return
        outputs = result["outputs"]
        remarks = [r for r in result["reasons"] if r["severity"] != "error"]
        self.journal.append(
            "attempt.succeeded",
            step=attempt.step,
            attempt=attempt.number,
            seconds=attempt.seconds,
            outputs=outputs,
            reasons=remarks,
        )
        self._checkpoint(attempt.look, outputs, attempt.number, attempt.seconds)
        entry = self.steps[attempt.step]
        entry["state"] = "satisfied"
        entry["seconds"] = attempt.seconds
        entry["reasons"] = [*entry["reasons"], *remarks]
        self._pending = [s for s in self._pending if s["id"] != attempt.step]

    def _fail(self, attempt: Attempt, error: dict[str, Any], left: list[int]) -> None:
        name = attempt.step
        step = self._by_id[name]
        if left:
            error["cause"] += f"\nprocesses {left} could not be ended"
        result = attempt.result or {}
        exit_code = result.get("exit_code", FAILED)
        retry = step["retry"]
        final = (
            exit_code == PRECONDITION
            or error["code"] == "cancelled"
            or attempt.number >= retry["attempts"]
        )
        delay = min(MOST_BACKOFF, retry["backoff"] * 2 ** (attempt.number - 1))
        self.journal.append(
            "attempt.failed",
            step=name,
            attempt=attempt.number,
            seconds=attempt.seconds,
            error=error,
            retry_in=None if final else delay,
        )
        if not final:
            self.journal.append("step.waiting", step=name, state="retrying", seconds=delay)
            self._retry_at[name] = time.monotonic() + delay
            return
        self._pending = [s for s in self._pending if s["id"] != name]
        entry = self.steps[name]
        entry.update(
            state="cancelled" if error["code"] == "cancelled" else "failed",
            seconds=attempt.seconds,
            error=error,
            exit_code=exit_code,
        )
        if result.get("reasons"):
            entry["reasons"] = result["reasons"]

    def _stop_all(self) -> None:
        """On the way out by a signal or a defect: end every attempt, then say so."""
        for attempt in self._running.values():
            for pid in attempt.processes():
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    continue
        deadline = time.monotonic() + STOP_GRACE
        for attempt in list(self._running.values()):
            self._forget(attempt)
            left = attempt.stop(max(0.0, deadline - time.monotonic()))
            os.close(attempt.events)
            if attempt.result is not None and attempt.result["type"] == "result":
                self._conclude(attempt, left)
                continue
            error = {
                "code": "cancelled",
                "message": "cancelled",
                "cause": signal.Signals(self.stopped_by).name if self.stopped_by else "",
                "remedy": "`runbook run` continues",
                "retryable": True,
                "where": "",
                "log": str(attempt.log),
            }
            self._fail(attempt, error, left)

    # Recording -------------------------------------------------------------------------------

    def _open(self) -> Path:
        """The folder of this run, made when there is first something to record."""
        if self.run is None:
            # Carried on, so that only the latest journal need ever be read.
            previous = self.workspace.latest()
            carried = RunRecord(previous).unfinished() if previous is not None else {}
            self.run = self.workspace.new_run()
            self.journal.open(self.run)
            self._write_rendered()
            self.workspace.point_latest(self.run)
            self.workspace.claim(self.lock, self.run.name)
            if carried:
                self.journal.append("run.carried", steps=carried)
        return self.run

    def _last(self, name: str) -> Any:
        if self._history is None:
            latest = self.workspace.latest()
            self._history = RunRecord(latest).steps if latest is not None else {}
        return self._history.get(name)

    def _checkpoint(
        self, look: Look, outputs: Mapping[str, Any], attempt: int, seconds: float
    ) -> None:
        name = look.step["id"]
        known = self.evaluator.record_outputs(name, outputs)
        self.workspace.write_checkpoint(
            name,
            {
                "time": now(),
                "run": self.run.name if self.run is not None else "",
                "attempt": attempt,
                "seconds": seconds,
                "package": runbook.__version__,
                "fingerprint": look.fingerprint,
                "inputs": look.inputs,
                "outputs": dict(outputs),
                "outputs_digest": known,
            },
            self.redactor,
        )

    def _write_rendered(self) -> None:
        """The document of this run with its inputs resolved, for people to read."""
        import yaml

        from runbook.files import write_atomic

        assert self.run is not None
        document = {
            "runbook": 1,
            "name": self.book["name"],
            "inputs": self.book["inputs"],
            "secrets": list(self.book["secrets"]),
            "steps": [
                {key: step[key] for key in ("id", "uses", "needs")}
                | ({"with": rendered} if (rendered := self._rendered.get(step["id"])) else {})
                for step in self.book["steps"]
            ],
        }
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        write_atomic(self.run / "runbook.yaml", self.redactor.text(text).encode())

    # The end ---------------------------------------------------------------------------------

    def _exit_code(self) -> int:
        if self.stopped_by:
            return STOP_CODES[signal.Signals(self.stopped_by)]
        if failed := self.of_state("failed"):
            only_preconditions = all(e["exit_code"] == PRECONDITION for e in failed)
            return PRECONDITION if only_preconditions else FAILED
        states = {entry["state"] for entry in self.steps.values()}
        if "unmet" in states:
            return PRECONDITION
        return APPROVAL if "waiting" in states else DONE

    def error(self) -> dict[str, Any] | None:
        """The first thing that kept the run from its end, as an `error` object."""
        if all(entry["state"] in SETTLED for entry in self.steps.values()) and not self.stopped_by:
            return None
        if failed := self.of_state("failed"):
            return {**failed[0]["error"], "step": failed[0]["id"]}
        if self.stopped_by:
            return {
                "code": "cancelled",
                "message": "the run was stopped before its end",
                "cause": signal.Signals(self.stopped_by).name,
                "remedy": "`runbook run` continues",
                "retryable": True,
                "where": "",
                "log": "",
            }
        if unmet := self.of_state("unmet"):
            reason = unmet[0]["reasons"][0]
            return {
                "code": "needs_unmet",
                "message": f"step {unmet[0]['id']} is not done: {reason['message']}",
                "cause": "it is outside the selected steps, which need it",
                "remedy": reason["remedy"] or self.command("run", "--until", self.lacking()),
                "retryable": False,
                "where": "",
                "log": "",
                "step": unmet[0]["id"],
            }
        if waiting := self.of_state("waiting"):
            first = waiting[0]
            approvals = (word for e in waiting for word in ("--approve", e["id"]))
            return {
                "code": "approval",
                "message": f"step {first['id']} waits for approval: {first['question']}",
                "cause": "",
                "remedy": self.command("run", *approvals),
                "retryable": True,
                "where": "",
                "log": "",
                "step": first["id"],
            }
        return None

    def lacking(self) -> str:
        """The last step that the selected ones need, that is not one of them, and that is not
        done; "" if there is none."""
        short = {e["id"] for state in ("unmet", "blocked") for e in self.of_state(state)}
        outside = short - self.selection.runnable
        return next((name for name in reversed(self._by_id) if name in outside), "")

    def of_state(self, state: str) -> list[dict[str, Any]]:
        """How the steps that ended in a state did, in the order of the document."""
        ended = (self.steps.get(name) for name in self._by_id)
        return [entry for entry in ended if entry is not None and entry["state"] == state]
