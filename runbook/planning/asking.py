"""Asks the check of a step, whatever it does: crashes, exits, hangs, prints, answers nonsense.

A shipped step is asked in this process, under an alarm. One of the user's own is asked in a fork
of it, which costs milliseconds: nothing that it does can end the run, keep it waiting, or come
between the lines that the program prints.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from runbook import crash
from runbook.planning.context import StepContext
from runbook.protocol import Check, Reason, StepFailure, Work
from runbook.remedy import load

if TYPE_CHECKING:
    from runbook.protocol import Step

SECONDS = 60.0
"""What a check is given that does not say otherwise (`check_limit`): it is to take milliseconds."""
AFTER = 5.0
"""Seconds after its limit at which a fork ends by itself, its parent being gone."""
PR_SET_PDEATHSIG = 1  # prctl(2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(BaseException):
    """A signal has stopped the run: no check is asked any more, nor to its end."""


class _Hangs(BaseException):
    pass


class _Watch:
    """An alarm for the check that is being asked. Setting one costs more than most checks take,
    so it rings once a second while there are checks, and looks at the clock then."""

    def __init__(self) -> None:
        self.asking = False
        self.stopped = False
        self._deadline = math.inf
        self._set = False

    def stop(self) -> None:
        """For the handler of a signal that stops the run."""
        self.stopped = True
        if self.asking:
            raise Stopped

    def enter(self) -> None:
        self.asking = True
        if self.stopped:  # since it was decided to ask
            raise Stopped

    def begin(self, limit: float) -> None:
        self.asking = True
        if self.stopped:
            raise Stopped
        self._deadline = time.monotonic() + limit
        if not self._set and limit < math.inf:
            try:
                signal.signal(signal.SIGALRM, self._ring)
            except ValueError:
                return  # in a thread: tests
            self._set = True
            signal.setitimer(signal.ITIMER_REAL, min(limit, 1.0))

    def _ring(self, number: int, frame: object) -> None:
        left = self._deadline - time.monotonic() if self.asking else math.inf
        self._set = left < math.inf
        if self._set:  # after the limit too, for a step that catches everything
            signal.setitimer(signal.ITIMER_REAL, min(max(left, 0.2), 1.0))
        if left <= 0:
            raise _Hangs


WATCH = _Watch()
# Python gives up its handlers when it ends: an alarm then would be a death by a signal.
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def ask(
    kind: Step, context: StepContext, limit: float, known: Mapping[str, Any] | None = None
) -> Check:
    """The answer of a check. `known` are outputs that were found valid before; others are held
    against the step's model. Raises StepFailure for a hang and for invalid outputs, and whatever
    the check raises."""
    try:
        WATCH.begin(limit)
        check = kind.check(context)
        if not isinstance(check, Check) or (check.ok and check.outputs != known):
            _validate(kind, check)
        return check
    except _Hangs:
        raise _hangs(limit) from None
    finally:
        WATCH.asking = False


def ask_apart(
    kind: Step, context: StepContext, limit: float, known: Mapping[str, Any] | None = None
) -> Check:
    """The same in a process of its own; a crash is a StepFailure too."""
    sys.stdout.flush()
    sys.stderr.flush()
    hear, tell = os.pipe()
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # not before there is who ends it
    child = os.fork()
    if child == 0:
        os.close(hear)
        _be_asked(kind, context, limit, known, tell)
    os.close(tell)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        WATCH.enter()
        answer = _hear(hear, context, limit)
    finally:
        WATCH.asking = False
        os.close(hear)
        status = _end(child)
    if answer is None:
        raise StepFailure(
            f"the process of its check ended with {status}",
            code="check_crashed",
            cause="before it had answered",
        )
    if (failure := answer.get("failure")) is not None:
        failure |= {"reasons": _reasons(failure["reasons"]), "remedy": load(failure["remedy"])}
        raise StepFailure(**failure)
    if (facts := getattr(context.facts, "learn", None)) is not None:
        facts(answer["facts"])
    reasons, work = _reasons(answer["reasons"]), Work(**answer["work"])
    return Check(answer["ok"], reasons, work, answer["outputs"])


def _reasons(dumped: list[dict[str, Any]]) -> tuple[Reason, ...]:
    return tuple(Reason(**{**reason, "remedy": load(reason["remedy"])}) for reason in dumped)


def crashed(error: BaseException, state: Path) -> StepFailure:
    """The failure of a check that raised something else than a failure; its traceback goes into
    the state folder."""
    file = crash.write(error, state)
    return StepFailure(
        f"its check crashed: {type(error).__name__}: {error}"[:500],
        code="check_crashed",
        remedy=f"this is a defect of the step; see {file}",
    )


def _validate(kind: Step, check: Any) -> None:
    """Raise if a check gave no Check, or outputs that are not of its model."""
    if not isinstance(check, Check):
        raise TypeError(f"it gave a {type(check).__name__}, not a Check")
    if not check.ok:
        return
    from pydantic import ValidationError

    try:
        kind.Outputs.model_validate(dict(check.outputs))
    except ValidationError as error:
        raise StepFailure(
            "the outputs of its check are not what it declares",
            code="invalid_outputs",
            cause=str(error),
            remedy="this is a defect of the step",
        ) from error


def _hangs(limit: float) -> StepFailure:
    return StepFailure(
        f"its check did not end within {limit:g} s",
        code="check_timeout",
        cause="a check is to be quick; it hangs, or what it asks does not answer",
        retryable=True,
    )


def _hear(hear: int, context: StepContext, limit: float) -> dict[str, Any] | None:
    """The answer of a fork; None if it ended without one."""
    deadline = time.monotonic() + limit
    buffer = b""
    while True:
        left = deadline - time.monotonic()
        if not select.select([hear], [], [], None if left == math.inf else max(0.0, left))[0]:
            raise _hangs(limit)
        if not (chunk := os.read(hear, 65536)):
            return None
        *lines, rest = (buffer + chunk).split(b"\n")
        buffer = rest
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "progress" not in message:
                return message
            if context.on_progress is not None:
                context.on_progress(message["progress"])


def _end(child: int) -> str:
    """End a fork and what its session holds; says how it had ended."""
    for end in (os.killpg, os.kill):  # before it leads a session there is no such group
        try:
            end(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _be_asked(
    kind: Step,
    context: StepContext,
    limit: float,
    known: Mapping[str, Any] | None,
    tell: int,
) -> NoReturn:
    """The fork: answer as a line of JSON. What is printed goes to standard error."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _end_with_parent(limit)
        os.dup2(2, 1)
        if context.on_progress is not None:
            context.on_progress = lambda message: _tell(tell, {"progress": dict(message)})
        answer = _told(kind, context, known)
        sys.stdout.flush()
        _tell(tell, answer)
    finally:
        os._exit(0)


def _end_with_parent(limit: float) -> None:
    if limit < math.inf:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit + AFTER)
        return
    import ctypes  # costs more than a quick check

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _told(kind: Step, context: StepContext, known: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        check = kind.check(context)
        if not isinstance(check, Check) or (check.ok and check.outputs != known):
            _validate(kind, check)
        gathered: dict[str, Any] = getattr(context.facts, "gathered", dict)()
        answer = {
            "ok": check.ok,
            "reasons": [reason.dump() for reason in check.reasons],
            "work": check.work.dump(),
            "outputs": dict(check.outputs),
            "facts": gathered,
        }
        json.dumps(answer, allow_nan=False)
        return answer
    except StepFailure as failure:
        found = failure
    except BaseException as error:
        found = crashed(error, context.workspace / ".runbook")
    fields = found.error_dict() | {"reasons": [reason.dump() for reason in found.reasons]}
    return {"failure": fields}


def _tell(tell: int, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(tell, data) :]
