"""The wait for a server that was started."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runbook.protocol import StepFailure
from runbook.steps.common.startup import Startup


@pytest.fixture
def server(tmp_path):
    log = tmp_path / "server.log"
    log.write_text("one\ntwo\n")
    running = SimpleNamespace(log=log, alive=lambda: True)
    told = []
    startup = Startup(SimpleNamespace(log=told.append, facts={}), running, 60, "serve")
    return SimpleNamespace(startup=startup, running=running, told=told)


def test_what_it_said_before_it_was_ready_is_read_before_what_follows(server):
    server.startup.until(lambda: True)
    assert server.told == ["one", "two"]


def test_one_that_ended_is_not_ready_whoever_answers(server):
    server.running.alive = lambda: False
    with pytest.raises(StepFailure) as failure:
        server.startup.until(lambda: True)
    assert failure.value.code == "server_died"
