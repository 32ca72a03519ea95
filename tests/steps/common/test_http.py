"""Sessions against real servers, proxies and certificates; failures in words."""

from __future__ import annotations

import base64
import contextlib
import http.server
import select
import socket
import ssl
import threading
from pathlib import Path

import pytest
import requests
import trustme

from runbook.protocol import StepFailure
from runbook.steps.common import http as client
from tests.conftest import free_port
from tests.steps.common.test_network import bare

__all__ = ["bare"]


class Handler(http.server.BaseHTTPRequestHandler):
    """Says what it was asked, at /status/N with that status, at /to/URL with a redirect."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        if self.path.startswith("/to/"):
            self._send(302, {"Location": self.path.removeprefix("/to/")})
        elif self.path.startswith("/status/"):
            self._send(int(self.path.rpartition("/")[2]))
        elif self.path == "/hang":
            self.server.released.wait(10)
            self._send(200)
        elif "://" in self.path:  # as a proxy
            self._send(200, {"X-Proxied": self.path})
        else:
            self._send(200)

    def do_CONNECT(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2]))) as target:
            ends = {self.connection: target, target: self.connection}
            while readable := select.select(ends, [], [], 5)[0]:
                for end in readable:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)

    def _send(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(authority: trustme.CA | None = None, name: str = "127.0.0.1"):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.released = [], threading.Event()
    server.handle_error = lambda *_: None  # a refused certificate ends the connection
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


def address(server) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


def test_a_proxy_is_asked_for_the_address_and_told_its_login(monkeypatch):
    with serving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@{address(proxy)}")
        answer = client.session().get("http://hub.example/x")
        assert answer.headers["X-Proxied"] == "http://hub.example/x"
        login = base64.b64encode(b"me:p@ss").decode()
        assert proxy.seen[0][2]["Proxy-Authorization"] == f"Basic {login}"
        assert client.session(local=True).get(f"http://{address(proxy)}/").status_code == 200


def test_tls_through_a_proxy_and_its_certificate(monkeypatch, tmp_path):
    authority = trustme.CA()
    with serving(authority, "hub.example") as hub, serving() as proxy:
        url = f"https://hub.example:{hub.server_address[1]}/x"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address(proxy)}")
        with pytest.raises(requests.exceptions.SSLError) as refused:
            client.session().get(url)
        assert client.failure(refused.value, url).code == "tls_failure"
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        assert client.session().get(url).status_code == 200
        assert {command for command, *_ in proxy.seen} == {"CONNECT"}


def test_a_redirect_is_judged_anew(monkeypatch):
    """It may lead past the proxy, and another server is not told the token."""
    with serving() as first, serving() as second:
        monkeypatch.setenv("HTTP_PROXY", "socks5://nowhere:1")
        token = {"Authorization": "Bearer t"}
        url = f"http://{address(first)}/to/http://{address(second)}/x"
        assert client.session().get(url, headers=token).status_code == 200
        assert first.seen[0][2]["Authorization"] == "Bearer t"
        assert "Authorization" not in second.seen[0][2]
        with pytest.raises(StepFailure) as refused:
            client.session().get(f"http://{address(first)}/to/http://hub.example/x")
        assert refused.value.code == "proxy_not_supported"


def test_netrc_takes_no_part(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving() as server:
        client.session().get(f"http://{address(server)}/")
        assert "Authorization" not in server.seen[0][2]


def _closed() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    ("url", "code", "retryable"),
    [
        ("http://me:secret@{closed}/x", "unreachable", True),
        ("http://me:secret@{server}/hang", "timed_out", True),
        ("http://{server}/to//to/", "redirect_loop", False),
        ("ftp://me:secret@host/x", "bad_url", False),
        ("http://", "bad_url", False),
        ("nothing", "bad_url", False),
    ],
)
def test_failures(url, code, retryable):
    with serving() as server:
        url = url.format(closed=_closed(), server=address(server))
        if url.endswith("/to//to/"):
            url = f"http://{address(server)}/to/" * 8 + "x"
        with pytest.raises((requests.RequestException, ValueError)) as error:
            client.session(timeout=0.3).get(url)
        failure = client.failure(error.value, url)
    assert (failure.code, failure.retryable) == (code, retryable)
    said = str(failure.error_dict())
    assert "secret" not in said
    assert "Traceback" not in said
    assert "object at 0x" not in said


def test_a_proxy_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@{_closed()}")
    with pytest.raises(requests.RequestException) as error:
        client.session().get("http://hub.example/x")
    failure = client.failure(error.value, "http://hub.example/x")
    assert failure.code == "proxy_failed"
    assert "refused" in failure.cause
    assert "secret" not in str(failure.error_dict())


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (401, "access_denied", False),
        (403, "access_denied", False),
        (404, "not_found", False),
        (407, "proxy_failed", False),
        (410, "not_found", False),
        (418, "refused", False),
        (429, "throttled", True),
        (500, "server_failed", True),
        (503, "server_failed", True),
        (599, "server_failed", True),
    ],
)
def test_refusals(status, code, retryable):
    with serving() as server:
        url = f"http://{address(server)}/status/{status}"
        answer = client.session().get(url)
        with pytest.raises(requests.HTTPError) as error:
            answer.raise_for_status()
    for refusal in (client.refusal(status, url), client.failure(error.value, url)):
        assert (refusal.code, refusal.retryable) == (code, retryable)
        assert str(status) in refusal.cause
        assert "`runbook run`" in str(refusal.remedy)


def test_what_needs_no_session_imports_no_client():
    import subprocess
    import sys

    heavy = "{'requests', 'urllib3', 'ssl', 'certifi', 'httpx', 'httpx2'}"
    code = f"import sys, runbook.steps.common.http; sys.exit(str({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stderr.strip() == "set()"
    assert Path(client.__file__).name == "http.py"
