"""The quick look at an endpoint, and who has a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from runbook.steps.common import ports
from runbook.steps.common.endpoint import health, url
from tests.conftest import free_port


@contextmanager
def answering(reply: bytes | None):
    """A server that reads a request and answers these bytes; None never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        requests = []
        done = threading.Event()

        def serve():
            connection, _ = server.accept()
            with connection:
                requests.append(connection.recv(4096))
                if reply is None:
                    done.wait(10)
                else:
                    connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], requests
        done.set()
        thread.join(10)


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "healthy"),
        (b"HTTP/1.0 200\r\n\r\n", "healthy"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "unhealthy"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "unhealthy"),
        (b"", "unhealthy"),
        (None, "slow"),
    ],
)
def test_health(reply, state):
    with answering(reply) as (port, requests):
        assert health("127.0.0.1", port, timeout=0.3) == state
        head = requests[0].decode().split("\r\n")
    assert head[:2] == ["GET /health HTTP/1.1", f"Host: 127.0.0.1:{port}"]


def test_nobody_listens():
    assert health("127.0.0.1", free_port()) == "refused"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("box.local", "http://box.local:80"),
    ],
)
def test_url(host, expected):
    assert url(host, 80) == expected


def test_a_port_is_in_use_while_someone_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ports.in_use("127.0.0.1", port)
        assert ports.in_use("0.0.0.0", port)
        holder = ports.holder(port)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert f"process {os.getpid()} (" in str(holder)
    assert not ports.in_use("127.0.0.1", port)
    assert ports.holder(port) is None


def test_a_connection_is_not_a_listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        port = client.getsockname()[1]
        assert ports.holder(port) is None
        client.close()


def test_the_holder_is_another_process():
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    holder = ports.holder(int(other.stdout.readline()))
    other.communicate("")
    assert holder is not None
    assert holder.pid == other.pid
    assert "import socket" in holder.command


def test_a_holder_that_cannot_be_seen():
    assert str(ports.Holder(None, "")) == "a process of another user"
