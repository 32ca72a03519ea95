"""One fault at a time: what is fetched again, what is said, what is given up."""

from __future__ import annotations

import base64
import errno
import http.client
import http.server
import os
import socket
import ssl
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import trustme

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.common.hub import acquire, part
from runbook.steps.common.hub.inventory import Inventory
from runbook.steps.common.hub.listing import Digest
from runbook.steps.common.hub.refusals import Busy
from runbook.steps.common.hub.source import sources
from runbook.steps.common.hub.step import wanted as wanted_of
from tests.steps.common.hub.hub import TUNING, Fault, TestHub, context, tree

LARGEST = "model-00003-of-00003.safetensors"


def test_whole_repository(hub, run, folder, source, repository):
    run(hub)
    assert tree(folder) == tree(source)
    assert hub.faults.sent == sum(f.size for f in repository.files)


def test_one_file_is_fetched_in_several_ranges_at_once(hub, run, folder, source):
    hub.faults.pause = 0.005
    run(hub, files={"allow": [LARGEST]}, workers=4)
    spans = [h["Range"] for where, h in hub.faults.headers if where == "content"]
    assert len(spans) == 5
    assert (folder / LARGEST).read_bytes() == (source / LARGEST).read_bytes()


@pytest.mark.parametrize("kind", ["cut", "reset"])
@pytest.mark.parametrize("at", [0.0, 0.001, 0.5, 0.999])
def test_cut_connection_goes_on_from_the_last_byte(hub, run, folder, source, repository, kind, at):
    hub.faults.pending.append(Fault(kind, at=at))
    lines = run(hub)
    assert hub.faults.happened[kind] == 1
    assert tree(folder) == tree(source)
    # A reset discards what the client's kernel had not handed over yet; an end does not.
    lost = hub.faults.sent - sum(f.size for f in repository.files)
    assert lost == 0 if kind == "cut" else lost <= 64 << 10
    assert any("next try in" in line for line in lines)


@pytest.mark.parametrize("where", ["api", "resolve", "content"])
@pytest.mark.parametrize("status", ["429", "500", "502", "503", "504"])
def test_busy_server_is_asked_again(hub, run, folder, source, where, status):
    hub.faults.pending.extend([Fault(status, where)] * 2)
    lines = run(hub)
    assert hub.faults.happened[status] == 2
    assert tree(folder) == tree(source)
    assert sum(status in line for line in lines) == 2


@pytest.mark.parametrize("where", ["api", "resolve", "content"])
def test_retry_after_is_honoured(hub, run, folder, source, where):
    hub.faults.pending.append(Fault("429", where, retry_after="1"))
    began = time.monotonic()
    run(hub)
    assert 1.0 <= time.monotonic() - began < 30
    assert tree(folder) == tree(source)


@pytest.mark.parametrize("where", ["api", "resolve", "content"])
def test_retry_after_beyond_the_patience_ends_at_once(hub, run, where):
    hub.faults.always[where] = Fault("429", where, retry_after="3600")
    began = time.monotonic()
    with pytest.raises(StepFailure) as failure:
        run(hub, patience=60.0)
    assert time.monotonic() - began < 30
    assert failure.value.retryable
    assert "429" in failure.value.cause


def test_patience_ends_a_download_that_gains_nothing(hub, run):
    hub.faults.always["content"] = Fault("503")
    began = time.monotonic()
    with pytest.raises(StepFailure) as failure:
        run(hub, patience=0.5)
    assert failure.value.code == "download_stalled"
    assert 0.5 <= time.monotonic() - began < 30


def test_slow_server_is_not_given_up_while_bytes_come(hub, run, folder, source):
    hub.faults.always["content"] = Fault("slow")
    run(hub, patience=0.3)
    assert tree(folder) == tree(source)


def test_silent_server_is_left_for_where_the_hub_sends_us_next(
    repository, run, folder, source, monkeypatch
):
    monkeypatch.setattr(acquire, "DEFAULT_TUNING", replace(TUNING, timeout=0.1))
    with TestHub(repository) as hub, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        real, hub.servers[0].content_url = (
            hub.servers[0].content_url,
            f"http://127.0.0.1:{silent.getsockname()[1]}",
        )
        threading.Timer(0.3, setattr, (hub.servers[0], "content_url", real)).start()
        lines = run(hub)
    assert any("timed out" in line.lower() for line in lines)
    assert tree(folder) == tree(source)


def test_wrong_bytes_are_fetched_again(hub, run, folder, source, repository):
    hub.faults.pending.append(Fault("flip"))
    lines = run(hub)
    assert hub.faults.happened["flip"] == 1
    assert tree(folder) == tree(source)
    assert any("wrong bytes, fetching again" in line for line in lines)
    size = max(f.size for f in repository.files)
    assert hub.faults.sent - sum(f.size for f in repository.files) <= size


def test_only_the_wrong_range_and_those_before_it_come_again(hub, run, folder, source):
    """The second pass stops when the digest is right."""
    hub.faults.pending.append(Fault("flip", at=0.1))
    run(hub, files={"allow": [LARGEST]}, workers=1)
    size = (source / LARGEST).stat().st_size
    assert hub.faults.sent == size + (64 << 10)
    assert (folder / LARGEST).read_bytes() == (source / LARGEST).read_bytes()


def test_bytes_that_stay_wrong_are_a_failure_with_both_digests(hub, run, folder, repository):
    hub.faults.always["content"] = Fault("flip")
    with pytest.raises(StepFailure) as failure:
        run(hub, files={"allow": [LARGEST]}, workers=1)
    assert failure.value.code == "digest_mismatch"
    assert repository.find(LARGEST).sha256 in failure.value.cause
    assert "found sha256:" in failure.value.cause
    assert not list(folder.rglob("*.part"))


def test_size_alone_does_not_see_wrong_bytes(hub, run, folder, source):
    """What `verify: size` gives up, and that asking for more later finds it."""
    hub.faults.pending.append(Fault("flip"))
    run(hub, verify="size")
    assert tree(folder) != tree(source)
    run(hub, verify="sha256")
    assert tree(folder) == tree(source)


def test_wrong_length_is_refused(hub, run, folder, source):
    hub.faults.pending.extend([Fault("length")] * 2)
    lines = run(hub)
    assert tree(folder) == tree(source)
    assert any("Content-Range" in line for line in lines)


def test_changed_file_starts_again_and_never_mixes(hub, run, folder, source, repository):
    hub.faults.pending.extend([Fault("cut", at=0.6), Fault("changed")])
    lines = run(hub, files={"allow": [LARGEST]}, workers=1)
    assert hub.faults.happened == {"cut": 1, "changed": 1}
    assert (folder / LARGEST).read_bytes() == (source / LARGEST).read_bytes()
    assert any("from the start" in line for line in lines)
    conditional = [h for _, h in hub.faults.headers if "If-Range" in h]
    assert conditional


def test_repository_that_differs_from_its_listing_is_refused(hub, run, folder, tmp_path):
    """The listing names one content, `resolve` another."""
    listing = sources(hub.url, [], None)[0].list("org/tiny", "main", {"allow": [], "ignore": []})
    zeros = Digest("sha256", "0" * 64)
    other = tuple(replace(e, digest=zeros) if e.path == LARGEST else e for e in listing.entries)
    folder.mkdir(parents=True)
    ctx = context(tmp_path / "workspace", hub, verify="size")
    Inventory(wanted_of(ctx), replace(listing, entries=other)).save(folder)
    with pytest.raises(StepFailure) as failure:
        run(hub, verify="size")
    assert failure.value.code == "changed_upstream"
    assert "0" * 64 in failure.value.cause


def test_server_without_ranges(hub, run, folder, source):
    hub.faults.always["content"] = Fault("whole")
    lines = run(hub)
    assert tree(folder) == tree(source)
    assert any("ignores ranges" in line for line in lines)


@pytest.mark.parametrize("where", ["resolve", "content"])
def test_redirect_loop_ends(hub, run, where):
    hub.faults.always[where] = Fault("loop", where)
    with pytest.raises(StepFailure) as failure:
        run(hub, patience=0.5)
    assert "redirect" in f"{failure.value.message} {failure.value.cause}"


def test_expired_location_is_asked_for_again(hub, run, folder, source):
    hub.faults.pending.append(Fault("403"))
    run(hub, files={"allow": [LARGEST]}, workers=1)
    assert hub.faults.requests["resolve"] == 2
    assert (folder / LARGEST).read_bytes() == (source / LARGEST).read_bytes()


def test_mirror_takes_over(hub, repository, run, folder, source):
    hub.faults.always["content"] = Fault("503")
    with TestHub(repository) as mirror:
        lines = run(hub, mirrors=[mirror.url])
        assert tree(folder) == tree(source)
        assert mirror.faults.sent
        assert any(f"going on with {mirror.url}" in line for line in lines)


def test_no_mirror_is_asked_for_a_listing(repository, run, folder):
    with TestHub(repository) as mirror, pytest.raises(StepFailure) as failure:
        run("http://127.0.0.1:9", mirrors=[mirror.url], patience=3.0)
    assert failure.value.code == "hub_unreachable"
    assert "refused" in failure.value.cause
    assert not mirror.faults.requests


CUT = Busy("it does not come to an end", cut=True)
SAID = [
    ([Busy("refused"), Busy("HTTP 503")], "HTTP 503"),
    ([Busy("refused"), CUT], "refused; then: it does not come to an end"),
    ([CUT, Busy("refused")], "refused"),
    ([CUT, CUT], "it does not come to an end"),
]


@pytest.mark.parametrize("troubles, cause", SAID)
def test_what_the_end_of_patience_cuts_off_does_not_hide_what_was_said(
    monkeypatch, troubles, cause
):
    """Each try takes ten seconds: the second is the last that there is patience for."""
    now, coming = [0.0], list(troubles)

    def pass_by(seconds):
        now[0] += seconds

    def answer(*_):
        pass_by(10)
        raise coming.pop(0)

    monkeypatch.setattr(acquire, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=pass_by))
    ctx = SimpleNamespace(inputs=SimpleNamespace(patience=20.5), notice=lambda message: None)
    wanted = {"repo": "org/tiny", "revision": "main", "files": {}}
    with pytest.raises(StepFailure) as failure:
        acquire._list(ctx, wanted, SimpleNamespace(list=answer))
    assert (failure.value.cause, coming) == (cause, [])


def test_a_hub_that_limits_says_for_how_long(hub, run):
    hub.faults.always["api"] = Fault("429", "api", retry_after="3600")
    with pytest.raises(StepFailure) as failure:
        run(hub, patience=3.0)
    assert (failure.value.code, failure.value.retryable) == ("hub_rate_limited", True)
    assert "in 60 min" in str(failure.value.remedy) or "in 1 h" in str(failure.value.remedy)


@pytest.mark.parametrize("verify", ["sha256", "size"])
def test_bytes_of_a_mirror_are_proven_whatever_is_asked_for(
    hub, repository, run, folder, source, verify
):
    hub.faults.always["content"] = Fault("503")
    with TestHub(repository) as mirror:
        mirror.faults.always["content"] = Fault("flip")
        with pytest.raises(StepFailure) as failure:
            run(hub, mirrors=[mirror.url], verify=verify, patience=1.0)
    assert failure.value.code in ("digest_mismatch", "download_stalled")
    assert not (folder / LARGEST).exists()


def test_wrong_bytes_are_taken_from_the_mirror(hub, repository, run, folder, source):
    hub.faults.always["content"] = Fault("flip")
    with TestHub(repository) as mirror:
        run(hub, mirrors=[mirror.url])
    assert tree(folder) == tree(source)


def test_mirror_that_lacks_a_file_does_not_end_the_download(hub, repository, run, folder, source):
    hub.faults.pending.extend([Fault("503")] * 6)
    with TestHub(repository) as mirror:
        mirror.faults.always["resolve"] = Fault("404", "resolve")
        run(hub, mirrors=[mirror.url])
    assert tree(folder) == tree(source)


def test_silent_listing_is_asked_for_again(hub, run, folder, source, monkeypatch):
    monkeypatch.setattr("runbook.steps.common.hub.source.TIMEOUT", 0.3)
    hub.faults.pending.extend([Fault("silent", "api")] * 2)
    lines = run(hub)
    assert hub.faults.happened["silent"] == 2
    assert tree(folder) == tree(source)
    assert sum("timed out" in line.lower() for line in lines) == 2


@pytest.mark.parametrize("where", ["api", "resolve", "content"])
def test_login_page_of_a_network_is_no_answer(hub, run, folder, source, where):
    hub.faults.pending.append(Fault("html", where))
    run(hub)
    assert hub.faults.happened["html"] == 1
    assert tree(folder) == tree(source)


def test_bandwidth_limit(hub, run, repository):
    size = sum(f.size for f in repository.files)
    began = time.monotonic()
    run(hub, bandwidth=size)
    assert 0.9 < time.monotonic() - began < 30


def test_full_disk_stops_cleanly_and_resumes(hub, run, folder, source, repository, monkeypatch):
    room = 150_000

    class SmallDisk:
        def __getattr__(self, name):
            return getattr(os, name)

        def pwrite(self, descriptor, data, offset):
            nonlocal room
            if len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            room -= len(data)
            return os.pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(part, "os", SmallDisk())
        with pytest.raises(PreconditionNotMet) as failure:
            run(hub)
    assert failure.value.code == "disk_full"
    before = hub.faults.sent
    run(hub)
    assert tree(folder) == tree(source)
    # What was written before the disk was full does not come again.
    total = sum(f.size for f in repository.files)
    assert hub.faults.sent - before <= total - 150_000 + 3 * (64 << 10)


def test_certificate_that_is_not_trusted(repository, run, tmp_path):
    authority = trustme.CA()
    with TestHub(repository) as hub:
        certificate = authority.issue_cert("127.0.0.1")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(server)
        for each in hub.servers:
            each.socket = server.wrap_socket(each.socket, server_side=True)
        with pytest.raises(PreconditionNotMet) as failure:
            run(hub.url.replace("http:", "https:"))
    assert failure.value.code == "tls_failure"
    assert "SSL_CERT_FILE" in str(failure.value.remedy)


def test_certificate_of_the_content_server(repository, run, tmp_path, monkeypatch, folder, source):
    """A hub in the clear that redirects to a content server with TLS: refused, then trusted."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    with TestHub(repository) as hub:
        content = hub.servers[1]
        content.socket = server.wrap_socket(content.socket, server_side=True)
        hub.servers[0].content_url = content.url.replace("http:", "https:")
        with pytest.raises(PreconditionNotMet) as failure:
            run(hub)
        assert failure.value.code == "tls_failure"
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        run(hub)
    assert tree(folder) == tree(source)


def test_through_a_proxy(hub, run, folder, source, monkeypatch):
    """Proxies of the environment are used, for listing and content; their password is sent to
    them alone."""
    seen, names = [], set()
    for server, name in zip(hub.servers, ("hub.example", "content.example"), strict=True):
        monkeypatch.setattr(server, "name", name)
    hub.servers[0].content_url = hub.servers[1].url

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(self.headers.get("Proxy-Authorization"))
            headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
            target = urlsplit(self.path)
            names.add(target.hostname)
            upstream = http.client.HTTPConnection("127.0.0.1", target.port, timeout=5)
            upstream.request(self.command, target._replace(scheme="", netloc="").geturl(),
                             headers=headers)  # fmt: skip
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())
            upstream.close()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        port = proxy.server_address[1]
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{port}")
        run(hub, files={"allow": [LARGEST]})
        proxy.shutdown()
    assert (folder / LARGEST).read_bytes() == (source / LARGEST).read_bytes()
    assert len([s for s in seen if s == "Basic " + base64.b64encode(b"user:p@ss").decode()]) >= 5
    assert not any("Proxy-Authorization" in h for _, h in hub.faults.headers)
    assert names == {"hub.example", "content.example"}
