"""What a step does to the machine, as Python's audit events tell it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

STARTING = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"})


@dataclass
class Audit:
    opened: list[str] = field(default_factory=list)
    connected: list[Any] = field(default_factory=list)
    started: list[Any] = field(default_factory=list)


_audit: Audit | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _audit is None:
        return
    if event == "open":
        _audit.opened.append(str(arguments[0]))
    elif event == "socket.connect":
        _audit.connected.append(arguments[1])
    elif event in STARTING:
        _audit.started.append(arguments)


sys.addaudithook(_hook)  # for good: Python has no way to remove one


@pytest.fixture
def audit():
    """A context manager that gives an `Audit` of what goes on meanwhile."""

    @contextmanager
    def collect() -> Iterator[Audit]:
        global _audit
        _audit = Audit()
        try:
            yield _audit
        finally:
            _audit = None

    return collect
