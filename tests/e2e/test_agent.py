"""An agent that knows AGENTS.md's loop alone gets from nothing to a served model, through fourteen
failures: what it is to do next stands in each answer.

RUNBOOK_TEST_COURSE names a file to which all commands and answers are added.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.e2e import failures as happens
from tests.e2e.agent import LONGEST_CALL, Agent
from tests.e2e.machine import Machine, Watch

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MOST_READ = 20_000
"""Bytes, in all."""
FAILURES = (
    "busy port",
    "full disk",
    "killed compiler",
    "conflicting patch",
    "hub 429 storm",
    "wrong bytes",
    "out of memory at start",
    "hang",
    "slow start",
    "death after ready",
    "dead supervisor",
    "missing approval",
    "reboot",
    "damaged state",
)


class Course:
    """The whole way, gone once: what happened, and what the agent met."""

    def __init__(self, home: Path) -> None:
        self.machine = machine = Machine(home, free_port())
        self.lock = threading.Lock()
        hub = happens.Storm(machine)
        starts = [kind(machine) for kind in (happens.OutOfMemory, happens.Hang, happens.SlowStart)]
        self.failures: dict[str, happens.Failure] = {
            "busy port": happens.BusyPort(machine),
            "full disk": happens.FullDisk(machine),
            "killed compiler": happens.KilledCompiler(machine),
            "conflicting patch": happens.ConflictingPatch(machine),
            "hub 429 storm": hub,
            "wrong bytes": happens.WrongBytes(machine, hub),
            "out of memory at start": starts[0],
            "hang": starts[1],
            "slow start": starts[2],
            "death after ready": happens.DeathAfterReady(machine),
            "dead supervisor": happens.DeadSupervisor(machine),
            "missing approval": happens.MissingApproval(machine),
            "reboot": happens.Reboot(machine),
            "damaged state": happens.DamagedState(machine),
        }
        assert tuple(self.failures) == FAILURES
        self.skipped = {"full disk"} if machine.holder is None else set()
        self.active = [f for name, f in self.failures.items() if name not in self.skipped]
        for failure in self.active:
            failure.begin()
        for start in starts:
            start.total = len(starts)
        machine.write_book(hub.url)
        self.agent = Agent(self.shell, self.tell, self.ask)
        self.served: dict[str, Any] = {}

    def go(self) -> None:
        watch = Watch(self.machine, self.seen)
        watch.start()
        try:
            self.served = self.agent.set_up("runbook.yaml")
        finally:
            watch.ended.set()

    def seen(self, event: dict[str, Any]) -> None:
        with self.lock:
            for failure in self.active:
                failure.seen(event)

    def shell(self, line: str) -> tuple[int, str]:
        with self.lock:
            for failure in self.active:
                failure.between(self.agent.codes())
        code, printed = self.machine.shell(line)
        if path := os.environ.get("RUNBOOK_TEST_COURSE"):
            with Path(path).open("a") as file:
                file.write(f"$ {line}\n{printed.rstrip()}\n[{code}, {len(printed)} bytes]\n")
        return code, printed

    def tell(self, said: str) -> bool:
        heard = [failure.hear(said) for failure in self.active]
        return any(heard)

    def ask(self, question: str) -> bool:
        return "Download" in question

    def close(self) -> None:
        for failure in self.active:
            failure.end()
        self.machine.close()


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    course = Course(tmp_path_factory.mktemp("agent"))
    try:
        course.go()
        yield course
    finally:
        course.close()


def test_it_is_served(course):
    assert course.served["endpoint"].startswith("http://127.0.0.1:")
    _, status = course.machine.shell("runbook status runbook.yaml --json")
    code, printed = course.machine.shell(json.loads(status)["served"]["request"])
    assert code == 0
    assert "pong" in printed


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_was_met_and_told(course, name):
    if name in course.skipped:
        pytest.skip("this user may not mount a small disk, nor make a namespace")
    failure = course.failures[name]
    assert failure.met
    assert not failure.codes or failure.codes & course.agent.codes()


def test_the_agent_was_never_kept_waiting(course):
    assert max(call.seconds for call in course.agent.calls) < LONGEST_CALL


def test_what_the_agent_had_to_read(course):
    assert course.agent.read <= MOST_READ


def test_the_state_of_the_whole_is_short(course):
    code, printed = course.machine.shell("runbook status runbook.yaml")
    assert code == 0 and '"served"' in printed
    assert len(printed.encode()) <= 600


def test_no_answer_was_a_defect(course):
    assert not any(call.code == 70 for call in course.agent.calls)
