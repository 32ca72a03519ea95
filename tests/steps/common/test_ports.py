"""Who listens on a port."""

from __future__ import annotations

import os
import socket

import pytest

from runbook.protocol import PreconditionNotMet
from runbook.steps.common import ports
from tests.conftest import free_port


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_one_who_listens_is_named(listening):
    assert ports.holder(listening).pid == os.getpid()
    with pytest.raises(PreconditionNotMet) as caught:
        ports.require_free("127.0.0.1", listening, "serve")
    assert f"process {os.getpid()}" in caught.value.message


def test_also_while_it_closes_other_descriptors(listening, monkeypatch):
    """The first of each process is gone when it is read."""
    real, lost = os.readlink, set()

    def readlink(path):
        folder = os.path.dirname(path)
        if folder not in lost:
            lost.add(folder)
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "readlink", readlink)
    assert ports.holder(listening).pid == os.getpid()


def test_a_free_port():
    port = free_port()
    assert ports.holder(port) is None
    assert not ports.in_use("127.0.0.1", port)
    ports.require_free("127.0.0.1", port, "serve")


def test_another_port_is_proposed_as_a_command(listening):
    remedy = ports.another("127.0.0.1", listening)
    option, given = remedy.arguments
    port = int(given.removeprefix("port="))
    assert (remedy.verb, option) == ("run", "--set")
    assert not ports.in_use("127.0.0.1", port)
    assert remedy.otherwise
