"""Evaluating what may grow or loop without end: in a process of its own, with limits."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

from runbook.protocol import Json

SECONDS = 2
"""Of processor time."""
PATIENCE = 30.0
"""Seconds on the clock, for a machine that has other things to do."""
MEMORY = 512 << 20
"""Bytes beyond what this process has."""
LARGEST = 1 << 20
"""Bytes of a result."""


class Excess(Exception):
    """The evaluation would have taken too much."""


class Relayed(Exception):
    """An error of the evaluation: the name of its class and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def confined(evaluate: Callable[[], Json]) -> Json:
    """The result of `evaluate`. Raises Excess or Relayed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _evaluate(evaluate, writing)
    os.close(writing)
    try:
        data = _read(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # has ended by itself, or is too slow
        _, status = os.waitpid(child, 0)
    if len(data) > LARGEST:
        raise Excess(f"its result is larger than {LARGEST >> 20} MiB")
    try:
        kind, value = json.loads(data)
    except ValueError:
        number = os.waitstatus_to_exitcode(status)
        if number == -signal.SIGXCPU:
            raise Excess(f"it takes more than {SECONDS} s") from None
        raise Excess(f"it takes more than {MEMORY >> 20} MiB or {SECONDS} s") from None
    if kind == "MemoryError":
        raise Excess(f"it takes more than {MEMORY >> 20} MiB")
    if kind:
        raise Relayed(kind, str(value))
    result: Json = value
    return result


def _read(reading: int) -> bytes:
    """What the child writes until its end, the limit of size, or that of time."""
    data = b""
    deadline = time.monotonic() + PATIENCE
    while len(data) <= LARGEST:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready or not (chunk := os.read(reading, 1 << 16)):
            break
        data += chunk
    return data


def _evaluate(evaluate: Callable[[], Json], writing: int) -> NoReturn:
    """The child. Never returns."""
    answer: list[Any]
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer = ["", evaluate()]
    except BaseException as error:
        answer = [type(error).__name__, getattr(error, "message", None) or str(error)]
    try:
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)
