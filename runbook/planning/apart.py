"""Asks a step of the user's own in a fork of this process, which costs milliseconds: whatever it
does, crash, exit, hang, print, answer nonsense, it cannot end the run, keep it waiting, or come
between the lines that the program prints."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from runbook.planning.asking import WATCH, Ahead, crashed, hangs, validate
from runbook.planning.context import Progress, StepContext, any_text
from runbook.protocol import Check, Reason, StepFailure, Work
from runbook.remedy import load

if TYPE_CHECKING:
    from runbook.protocol import Hooks, Step

AFTER = 5.0
"""Seconds after its limit at which a fork ends by itself, its parent being gone."""
PR_SET_PDEATHSIG = 1  # prctl(2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def ask(
    kind: Step, context: StepContext, limit: float, known: Mapping[str, Any] | None = None
) -> Check:
    """As `asking.ask`; a crash is a StepFailure too."""
    state = context.workspace / ".runbook"
    answer = _apart(
        lambda: _told(kind, context, known), "check", limit, state, context.facts, context
    )
    reasons, work = _reasons(answer["reasons"]), Work(**answer["work"])
    return Check(answer["ok"], reasons, work, answer["outputs"])


def foresee(kind: Hooks, ahead: Ahead, limit: float, state: Path) -> tuple[Reason, ...]:
    """As `asking.foresee`; `state` is the folder for crashes."""

    def told() -> dict[str, Any]:
        return {"reasons": [reason.dump() for reason in kind.foresee(*ahead)]}

    return _reasons(_apart(told, "foresee", limit, state, ahead[2])["reasons"])


def resolve(
    kind: Hooks, context: StepContext, anew: bool, limit: float, state: Path
) -> dict[str, str]:
    """What a step says that the names which move in its inputs are."""

    def told() -> dict[str, Any]:
        return {"resolved": dict(kind.resolve(context, anew))}

    answer = _apart(told, "resolve", limit, state, context.facts, context)
    resolved: dict[str, str] = answer["resolved"]
    return resolved


def _apart(
    work: Callable[[], dict[str, Any]],
    name: str,
    limit: float,
    state: Path,
    facts: Any,
    context: StepContext | None = None,
) -> dict[str, Any]:
    """What `work`, a method `name` of a step, tells in a fork. What it gathers is learnt."""
    sys.stdout.flush()
    sys.stderr.flush()
    hear, tell = os.pipe()
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # not before there is who ends it
    child = os.fork()
    if child == 0:
        os.close(hear)
        _be_asked(lambda: _answer(work, name, state, facts), limit, context, tell)
    os.close(tell)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        WATCH.enter()
        answer = _hear(hear, name, limit, context.on_progress if context is not None else None)
    finally:
        WATCH.asking = False
        os.close(hear)
        status = _end(child)
    if answer is None:
        raise StepFailure(
            f"the process of its {name} ended with {status}",
            code="check_crashed",
            cause="before it had answered",
        )
    if (failure := answer.get("failure")) is not None:
        failure |= {"reasons": _reasons(failure["reasons"]), "remedy": load(failure["remedy"])}
        raise StepFailure(**failure)
    if (learn := getattr(facts, "learn", None)) is not None:
        learn(answer["facts"])
    return answer


def _reasons(dumped: list[dict[str, Any]]) -> tuple[Reason, ...]:
    return tuple(Reason(**{**reason, "remedy": load(reason["remedy"])}) for reason in dumped)


def _hear(
    hear: int, name: str, limit: float, on_progress: Progress | None
) -> dict[str, Any] | None:
    """The answer of a fork; None if it ended without one."""
    deadline = time.monotonic() + limit
    buffer = b""
    while True:
        left = deadline - time.monotonic()
        if not select.select([hear], [], [], None if left == math.inf else max(0.0, left))[0]:
            raise hangs(name, limit)
        if not (chunk := os.read(hear, 65536)):
            return None
        *lines, rest = (buffer + chunk).split(b"\n")
        buffer = rest
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "progress" not in message:
                return message
            if on_progress is not None:
                on_progress(message["progress"])


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
    work: Callable[[], dict[str, Any]], limit: float, context: StepContext | None, tell: int
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
        sys.stdout = any_text(1)
        if context is not None and context.on_progress is not None:
            context.on_progress = lambda message: _tell(tell, {"progress": dict(message)})
        answer = work()
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


def _answer(
    work: Callable[[], dict[str, Any]], name: str, state: Path, facts: Any
) -> dict[str, Any]:
    try:
        answer = {**work(), "facts": getattr(facts, "gathered", dict)()}
        json.dumps(answer, allow_nan=False)
        return answer
    except StepFailure as failure:
        found = failure
    except BaseException as error:
        found = crashed(error, state, name)
    fields = found.error_dict() | {"reasons": [reason.dump() for reason in found.reasons]}
    return {"failure": fields}


def _told(kind: Step, context: StepContext, known: Mapping[str, Any] | None) -> dict[str, Any]:
    check = kind.check(context)
    if not isinstance(check, Check) or (check.ok and check.outputs != known):
        validate(kind, check)
    return {
        "ok": check.ok,
        "reasons": [reason.dump() for reason in check.reasons],
        "work": check.work.dump(),
        "outputs": dict(check.outputs),
    }


def _tell(tell: int, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(tell, data) :]
