"""Asks the check of a step, or what it foresees, in this process and under an alarm: that is for
shipped steps. Those of the user's own are asked apart (`apart`)."""

from __future__ import annotations

import atexit
import math
import signal
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from runbook.planning.context import StepContext
from runbook.protocol import Check, Reason, StepFailure
from runbook.state import crash

if TYPE_CHECKING:
    from runbook.protocol import Hooks, Step

Ahead: TypeAlias = tuple[Mapping[str, Any], Collection[str], Mapping[str, Any]]
"""What `foresee` is given: inputs, the paths of those that are unknown, facts."""

SECONDS = 60.0
"""What a check is given that does not say otherwise (`check_limit`): it is to take milliseconds."""

BROKEN = frozenset({"check_crashed", "check_timeout", "invalid_outputs"})
"""Codes of failures that are defects of a step's class, which is named then."""


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
            # Again and again by itself: what is left in the middle by another signal, or by a
            # check that leaves no room on the stack, is not without an alarm from then on.
            signal.setitimer(signal.ITIMER_REAL, min(limit, 1.0), 1.0)
            self._set = True

    def _ring(self, number: int, frame: object) -> None:
        left = self._deadline - time.monotonic() if self.asking else math.inf
        if left < math.inf:  # after the limit too, for a step that catches everything
            signal.setitimer(signal.ITIMER_REAL, min(max(left, 0.2), 1.0), 1.0)
        else:
            self._set = False
            signal.setitimer(signal.ITIMER_REAL, 0)
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
            validate(kind, check)
        return check
    except _Hangs:
        raise hangs("check", limit) from None
    finally:
        WATCH.asking = False


def foresee(kind: Hooks, ahead: Ahead, limit: float) -> tuple[Reason, ...]:
    """What a step says ahead, asked as its check is: raises the same."""
    try:
        WATCH.begin(limit)
        return tuple(kind.foresee(*ahead))
    except _Hangs:
        raise hangs("foresee", limit) from None
    finally:
        WATCH.asking = False


def crashed(error: BaseException, state: Path, name: str = "check") -> StepFailure:
    """The failure of a check, or another method `name`, that raised something else than a failure;
    its traceback goes into the state folder."""
    file = crash.write(error, state)
    return StepFailure(
        f"its {name} crashed: {type(error).__name__}: {error}"[:500],
        code="check_crashed",
        remedy=f"this is a defect of the step; see {file}",
    )


def validate(kind: Step, check: Any) -> None:
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
            cause="; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}"
                for e in error.errors(include_url=False, include_input=False)
            ),
            remedy="this is a defect of the step",
        ) from error


def hangs(name: str, limit: float) -> StepFailure:
    return StepFailure(
        f"its {name} did not end within {limit:g} s",
        code="check_timeout",
        cause=f"a {name} is to be quick; it hangs, or what it asks does not answer",
        retryable=True,
    )
