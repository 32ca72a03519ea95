"""One attempt: a process in its own session that applies (or undoes) one step.

It is two processes. The outer one, the pump, reads what the inner one prints, redacts it and
writes the log; it passes events on to the supervisor and outlives its death. The inner one runs
the step; it dies with the pump, so a killed attempt is dead as a whole.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

from runbook.document.registry import load_step
from runbook.planning.asking import BROKEN, SECONDS, ask
from runbook.planning.context import StepContext, any_text
from runbook.planning.facts import Facts
from runbook.process import MARK, carry, of_attempt, stop
from runbook.protocol import Cancelled, Hooks, StepFailure
from runbook.redact import Redactor
from runbook.remedy import dump, joined

PR_SET_PDEATHSIG = 1  # prctl(2)
PROGRESS_INTERVAL = 0.1
AT_ONCE = 16
"""Chunks of 64 KiB that are moved from one pipe before the other is looked at."""
LONGEST_TEXT = 4096
"""Characters of a text in a message to the supervisor; the log has all of it."""
LONGEST_CAUSE = 32768
MOST_ITEMS = 64
MOST_NOTICES = 1000
"""Of an attempt that are events; further ones are lines of its log."""
LARGEST_OUTPUTS = 16 << 20


def main() -> int:
    spec = json.loads(sys.stdin.buffer.read())
    secrets = frozenset(spec["secrets"])
    mark = os.environ[MARK]
    carry(mark)
    events = int(sys.argv[1])
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    printed, print_end = os.pipe()
    told, tell_end = os.pipe()
    supervisor, pump = os.getppid(), os.getpid()
    child = os.fork()
    if child == 0:
        for descriptor in (printed, told, events, log):
            os.close(descriptor)
        _run_step(spec, secrets, pump, print_end, tell_end)
    os.close(print_end)
    os.close(tell_end)
    code = _pump(child, printed, told, events, log, Redactor(secrets, spec["inputs"]))
    if os.getppid() != supervisor:  # nobody else ends what the step left running
        stop(lambda: of_attempt(mark), 2.0)
    return code


def _pump(child: int, printed: int, told: int, events: int, log: int, redactor: Redactor) -> int:
    """Move output and events until the inner process has ended and what it wrote is read."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the step, which shares our session
    selector = selectors.DefaultSelector()
    os.set_blocking(printed, False)
    os.set_blocking(told, False)
    selector.register(printed, selectors.EVENT_READ)
    selector.register(told, selectors.EVENT_READ)
    exited = os.pidfd_open(child)
    selector.register(exited, selectors.EVENT_READ)
    ended = False
    while not ended:
        ready = {key.fd for key, _ in selector.select()}
        # When the child has ended, one more read takes what is left; a daemon that it started
        # may keep the pipe open for ever.
        ended = exited in ready
        for descriptor in (printed, told):
            # Neither may keep the other waiting: what prints without end, or after the end.
            for _ in range(AT_ONCE):
                if not (chunk := _read(descriptor)):
                    break
                if descriptor == printed:
                    _write(log, redactor.feed(chunk))
                else:
                    _tell(events, chunk)
            if chunk == b"" and descriptor in selector.get_map():
                selector.unregister(descriptor)
    _write(log, redactor.flush())
    os.fsync(log)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    _tell(events, json.dumps({"type": "exit", "status": code}).encode() + b"\n")
    return 0 if code == 0 else 1


def _read(descriptor: int) -> bytes | None:
    """The next chunk; b"" at the end, None if there is nothing now."""
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return None


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _tell(events: int, data: bytes) -> None:
    try:
        _write(events, data)
    except BrokenPipeError:
        pass  # the supervisor is gone; the step goes on, its log and its result are on disk


def _run_step(
    spec: dict[str, Any], secrets: frozenset[str], pump: int, print_end: int, tell_end: int
) -> NoReturn:
    """The inner process. Never returns."""
    import ctypes
    import faulthandler

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pump:
        os._exit(1)
    os.dup2(print_end, 1)
    os.dup2(print_end, 2)
    os.close(print_end)
    sys.stdout, sys.stderr = any_text(1), any_text(2)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _cancel)
    signal.signal(signal.SIGINT, _disregard)

    def tell(**message: Any) -> None:
        _tell(tell_end, json.dumps(_bounded(message)).encode() + b"\n")

    status = 1
    try:
        tell(**_apply(spec, secrets, tell))
        status = 0
    except Cancelled:
        tell(type="failure", code="cancelled", message="cancelled", retryable=True)
    except StepFailure as failure:
        tell(
            type="failure",
            code=failure.code,
            message=f"{spec['uses']}: {failure.message}"
            if failure.code in BROKEN
            else failure.message,
            cause=failure.cause,
            remedy=dump(failure.remedy),
            retryable=failure.retryable,
            where=failure.where,
            exit_code=failure.exit_code,
            reasons=[r.dump() for r in failure.reasons],
        )
    except BaseException as error:
        import traceback

        traceback.print_exc()
        tell(
            type="failure",
            code="step_crashed",
            message=f"the step ({spec['uses']}) crashed: {type(error).__name__}",
            cause=str(error),
            remedy="this is a defect of the step; its log has the traceback",
            retryable=False,
        )
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _bounded(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose texts have a bounded length. Outputs, which are data, stay whole."""
    for key, value in message.items():
        if isinstance(value, str):
            most = LONGEST_CAUSE if key == "cause" else LONGEST_TEXT
            message[key] = value if len(value) <= most else value[: most - 4] + " ..."
    if items := message.get("items"):
        names = (item | {"name": item["name"][:LONGEST_TEXT]} for item in items[:MOST_ITEMS])
        message["items"] = list(names)
    return message


def _cancel(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, _disregard)
    raise Cancelled


def _disregard(number: int, frame: object) -> None:
    """Unlike SIG_IGN, not inherited by what the step starts: a server is asked to end by SIGINT."""


def _apply(spec: dict[str, Any], secrets: frozenset[str], tell: Any) -> dict[str, Any]:
    """Do the work, then prove it by `check`; the message that says how it ended."""
    kind = cast(Hooks, load_step(spec["uses"], Path(spec["folder"])))
    last = 0.0
    notices = 0

    def notice(message: str) -> None:
        nonlocal notices
        notices += 1
        if notices <= MOST_NOTICES:
            tell(type="notice", message=message)

    def progress(message: Mapping[str, Any]) -> None:
        nonlocal last
        moment = time.monotonic()
        if moment - last >= PROGRESS_INTERVAL or message["done"] == message["total"]:
            last = moment
            tell(type="progress", **message)

    context = StepContext(
        spec["step"],
        SimpleNamespace(**spec["inputs"]),
        Path(spec["workspace"]),
        Path(spec["cache"]),
        forced=spec["forced"],
        facts=Facts(),
        secrets=secrets,
        locks=tuple(map(Path, spec["locks"])),
        out=sys.stdout,
        on_progress=progress,
        on_notice=notice,
        uses=spec["uses"],
    )
    if spec["action"] == "undo":
        kind.undo(context)
        return {"type": "result", "outputs": {}, "reasons": []}
    kind.apply(context)
    context.forced = False
    limit = getattr(kind, "check_limit", lambda inputs: None)(context.inputs)
    check = ask(kind, context, limit or SECONDS)
    if not check.ok:
        errors = [r for r in check.reasons if r.severity == "error"]
        raise StepFailure(
            "the step ended without an error, but its check does not hold",
            code="not_verified",
            cause="; ".join(r.message for r in errors),
            remedy=joined(r.remedy for r in errors),
            reasons=check.reasons,
        )
    if len(json.dumps(dict(check.outputs))) > LARGEST_OUTPUTS:
        raise StepFailure(
            f"the step's outputs are larger than {LARGEST_OUTPUTS >> 20} MiB",
            code="invalid_outputs",
            remedy="give the name of a file that holds them",
        )
    return {
        "type": "result",
        "outputs": dict(check.outputs),
        "reasons": [r.dump() for r in check.reasons],
    }


if __name__ == "__main__":
    sys.exit(main())
