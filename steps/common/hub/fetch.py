"""One range of one file over HTTP.

Why ranged HTTP also for repositories in Xet storage: the hub answers `resolve` for those with a
redirect to a bridge that speaks plain HTTP with ranges, so one way serves all repositories, and
it resumes. hf_xet does not: huggingface_hub 2.4 (`_download_to_tmp_and_move`, `xet_get`) gives
hf_xet 1.8 a temporary file of a random name, unlinks it when the call fails and abandons it when
the process is killed, so every unfinished file starts again; given one name again, hf_xet itself
starts the file anew (a kill at the half lost 0.5 to 0.9 of a whole run). Nor is it quicker: from a
store on the same disk, no network between, it took 1.1 to 1.8 times as long as ranged HTTP over
the loopback with its digests (tests/benchmarks/weights.py --only xet). What it saves, chunks that
are on the disk already, a first download of one model does not have.

Why urllib3: on the loopback one connection moved 0.5 to 1.1 GB/s through urllib3 and 0.2 GB/s
through httpx (tests/benchmarks/weights.py times the whole), and `read1` hands over what has
arrived, so that a cut costs nothing already received.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from runbook.steps.common.hub import hub
from runbook.steps.common.hub.hub import BUSY, Busy, Location

REDIRECTS = 5
READ = 1 << 20


class Expired(Exception):
    """The content location no longer serves: ask the hub for a new one."""


class Changed(Exception):
    """The server has other content than what was fetched before: nothing may be mixed."""


class Misbehaved(Exception):
    """The answer is not the range that was asked for."""


@dataclass
class Answer:
    """A response positioned at `start`; `whole`: the server ignored the range."""

    response: BaseHTTPResponse
    start: int
    stop: int
    whole: bool
    validator: str

    def read(self) -> bytes:
        """What has arrived, at most 1 MiB; empty at the end."""
        try:
            return self.response.read1(READ, decode_content=False)
        except (HTTPError, OSError) as error:
            raise Busy(f"connection lost: {error}") from error


class Client:
    """Connections to content servers, kept open between ranges."""

    def __init__(self, connections: int, timeout: float) -> None:
        self._connections = connections
        self._timeout = urllib3.Timeout(connect=min(10.0, timeout), read=timeout)
        self._pools: dict[tuple[str, str | None], urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._open: set[BaseHTTPResponse] = set()
        self._closed = False

    @contextmanager
    def get(
        self, location: Location, span: tuple[int, int], size: int, validator: str = ""
    ) -> Iterator[Answer]:
        """Ask for bytes [start, stop) of a file of `size` bytes. `validator`: the ETag that the
        server gave before; then other content raises Changed. Raises also Busy, Expired,
        Misbehaved, and StepFailure for a refused certificate."""
        start, stop = span
        headers = {**location.headers, "Range": f"bytes={start}-{stop - 1}"}
        if validator and not validator.startswith("W/"):
            headers["If-Range"] = validator  # must be a strong one: RFC 9110, 13.1.5
        response = self._request(location.url, headers)
        complete = False
        try:
            answer = _judge(response, start, stop, size, validator)
            yield answer
            complete = answer.response.tell() >= answer.stop - answer.start
        finally:
            with self._lock:
                self._open.discard(response)
            if complete:
                response.release_conn()
            else:
                response.close()

    def _request(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        headers = dict(headers)
        for _ in range(REDIRECTS):
            try:
                response = self._pool(url).request(
                    "GET",
                    url,
                    headers=headers,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    timeout=self._timeout,
                )
            except (HTTPError, OSError) as error:
                if certificate := hub.certificate_error(error):
                    raise hub.tls_failure(urlsplit(url).netloc, certificate) from error
                raise Busy(f"{urlsplit(url).netloc}: {error}") from error
            target = response.get_redirect_location()
            if not target:
                with self._lock:
                    self._open.add(response)
                    if self._closed:
                        response.close()
                return response
            response.drain_conn()
            target = urljoin(url, target)
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                headers.pop("Authorization", None)
            url = target
        raise Misbehaved(f"more than {REDIRECTS} redirects, the last to {urlsplit(url).netloc}")

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = getproxies().get(parts.scheme)
        if proxy and proxy_bypass(parts.hostname or ""):
            proxy = None
        key = (parts.scheme, proxy)
        with self._lock:
            if key not in self._pools:
                make = partial(_through, proxy) if proxy else urllib3.PoolManager
                context = _trust() if parts.scheme == "https" else None
                self._pools[key] = make(
                    num_pools=32, maxsize=self._connections, ssl_context=context
                )
            return self._pools[key]

    def close(self) -> None:
        """End all connections, also those that a thread waits on."""
        with self._lock:
            self._closed = True
            responses = list(self._open)
            pools = list(self._pools.values())
        for response in responses:
            # Its thread may just have finished with it: then there is nothing to wake.
            with suppress(ValueError, RuntimeError, OSError):
                response.shutdown()
        for pool in pools:
            pool.clear()


def _through(proxy: str, **options: Any) -> urllib3.ProxyManager:
    """Connections through a proxy; urllib3 does not read a password from its URL."""
    auth = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=unquote(auth)) if auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


def _trust() -> ssl.SSLContext:
    """The certificate authorities that huggingface_hub's client trusts, by the same variables."""
    return ssl.create_default_context(
        cafile=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        capath=os.environ.get("SSL_CERT_DIR") or None,
    )


def _judge(response: BaseHTTPResponse, start: int, stop: int, size: int, validator: str) -> Answer:
    """Is this the range that was asked for, of the content that is meant?"""
    status = response.status
    if status in BUSY:
        raise Busy(f"status {status}", hub.asked_wait(response.headers))
    if status in (401, 403, 404, 410):
        raise Expired(f"status {status}")
    found = response.headers.get("ETag", "")
    if status == 416:
        raise Misbehaved(f"status 416, Content-Range {response.headers.get('Content-Range')}")
    if status not in (200, 206):
        raise Misbehaved(f"status {status}")
    # An answer without an ETag says nothing of a change, unless it is the whole file where the
    # range was asked for on the condition that nothing changed.
    if validator and found != validator and (found or status == 200):
        raise Changed(f"ETag {found or 'none'} where it was {validator}")
    if status == 200:
        length = response.headers.get("Content-Length")
        if length is not None and int(length) != size:
            raise Misbehaved(f"a length of {length} where the hub lists {size}")
        return Answer(response, 0, size, whole=(start, stop) != (0, size), validator=found)
    expected = f"bytes {start}-{stop - 1}/{size}"
    given = response.headers.get("Content-Range", "")
    if given.replace("/*", f"/{size}") != expected:
        raise Misbehaved(f"Content-Range {given!r} where {expected!r} was asked for")
    return Answer(response, start, stop, whole=False, validator=found)
