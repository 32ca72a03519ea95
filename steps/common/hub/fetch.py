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
arrived, so that a cut costs nothing already received. The settings are those of network.py.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from runbook.redact import without_password
from runbook.steps.common import http, network
from runbook.steps.common.hub.refusals import Busy, asked_wait
from runbook.steps.common.hub.source import Location
from runbook.steps.common.hub.untrusted import shown

READ = 1 << 20
HEADERS = {"User-Agent": http.AGENT, "Accept-Encoding": "identity"}


class Expired(Exception):
    """The content location no longer serves: ask the hub for a new one."""


class Changed(Exception):
    """The server has other content than what was fetched before: nothing may be mixed."""


class Misbehaved(Exception):
    """The answer is not the range that was asked for."""


@dataclass
class Answer:
    """A response positioned at `start`; `whole`: the server ignored the range. `location`: where
    it came from, to be asked for the next range."""

    response: BaseHTTPResponse
    start: int
    stop: int
    whole: bool
    validator: str
    location: Location

    def read(self) -> bytes:
        """What has arrived, at most 1 MiB; empty at the end."""
        try:
            return self.response.read1(READ, decode_content=False)
        except (HTTPError, OSError) as error:
            raise Busy(f"connection lost: {http.reason(error)}") from error


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
        Misbehaved, and StepFailure for what another try would not mend."""
        start, stop = span
        headers = {**HEADERS, "Range": f"bytes={start}-{stop - 1}"}
        if validator and not validator.startswith("W/"):
            headers["If-Range"] = validator  # must be a strong one: RFC 9110, 13.1.5
        response, found = self._follow(location, headers)
        complete = False
        try:
            answer = _judge(response, start, stop, size, validator, found)
            yield answer
            complete = answer.response.tell() >= answer.stop - answer.start
        finally:
            with self._lock:
                self._open.discard(response)
            if complete:
                response.release_conn()
            else:
                response.close()

    def _follow(
        self, location: Location, headers: Mapping[str, str]
    ) -> tuple[BaseHTTPResponse, Location]:
        """The answer at the end of the redirects, and where that was. A server that is asked for
        a file is listened to as long as it answers itself."""
        url, inquiry, authorization = location.url, location.inquiry, location.authorization
        said: dict[str, str] = {}
        for _ in range(http.REDIRECTS):
            response = self._request(url, headers, authorization)
            try:
                target = _target(response, url)
                if inquiry is not None:
                    inquiry.look(response.status, response.headers, said)
                    if target is None or not inquiry.concerns(target):
                        inquiry.conclude(said)
                        inquiry = None
            except BaseException:
                self._drop(response)
                raise
            if target is None:
                # Where the server answers itself it is asked anew each time, with its rights.
                stays = url == location.url
                return response, location if stays else Location(url, authorization)
            self._drop(response, reuse=True)
            if network.origin(target) != network.origin(url):
                authorization = ""
            url = target
        raise Misbehaved(f"more than {http.REDIRECTS} redirects, the last to {_host(url)}")

    def _request(
        self, url: str, headers: Mapping[str, str], authorization: str
    ) -> BaseHTTPResponse:
        given = {**headers, "Authorization": authorization} if authorization else headers
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers=given,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=self._timeout,
            )
        except (HTTPError, OSError, ValueError) as error:
            if certificate := http.certificate_error(error):
                raise http.tls_failure(_host(url), certificate) from error
            raise Busy(f"{_host(url)}: {http.reason(error)}") from error
        with self._lock:
            self._open.add(response)
            if self._closed:
                response.close()
        return response

    def _drop(self, response: BaseHTTPResponse, reuse: bool = False) -> None:
        with self._lock:
            self._open.discard(response)
        if reuse and (response.length_remaining or 0) < READ:
            with suppress(HTTPError, OSError, ValueError):
                response.drain_conn()
                return
        response.close()

    def _pool(self, url: str) -> urllib3.PoolManager:
        scheme, proxy = urlsplit(url).scheme, network.proxy_for(url)
        with self._lock:
            if (scheme, proxy) not in self._pools:
                make = partial(_through, proxy) if proxy else urllib3.PoolManager
                context = network.trust() if scheme == "https" else None
                self._pools[scheme, proxy] = make(
                    num_pools=32, maxsize=self._connections, ssl_context=context
                )
            return self._pools[scheme, proxy]

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
    if proxy.startswith("https:"):
        options["proxy_ssl_context"] = network.trust()
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


def _host(url: str) -> str:
    return without_password(url).partition("://")[2].partition("/")[0]


def _target(response: BaseHTTPResponse, url: str) -> str | None:
    """Where a redirect leads; None if it is none. Raises Misbehaved for nowhere."""
    given = response.get_redirect_location()
    if given is None or given is False:
        return None
    if target := network.absolute(url, given):
        return target
    raise Misbehaved(f"Location {shown(given)} of {_host(url)} leads nowhere")


def _judge(
    response: BaseHTTPResponse, start: int, stop: int, size: int, validator: str, found: Location
) -> Answer:
    """Is this the range that was asked for, of the content that is meant?"""
    status = response.status
    if status in http.BUSY:
        raise Busy(f"{_host(found.url)} answers {status}", asked_wait(response.headers))
    if status in (401, 403, 404, 410):
        raise Expired(f"status {status} of {_host(found.url)}")
    etag = response.headers.get("ETag", "")
    if status == 416:
        given = response.headers.get("Content-Range")
        raise Misbehaved(f"status 416, Content-Range {shown(given)}")
    if status not in (200, 206):
        raise Misbehaved(f"status {status} of {_host(found.url)}")
    # An answer without an ETag says nothing of a change, unless it is the whole file where the
    # range was asked for on the condition that nothing changed.
    if validator and etag != validator and (etag or status == 200):
        raise Changed(f"ETag {shown(etag) if etag else 'none'} where it was {shown(validator)}")
    if encoding := response.headers.get("Content-Encoding", "").lower().replace("identity", ""):
        raise Misbehaved(f"Content-Encoding {shown(encoding)}, which was not asked for")
    if status == 200:
        length = response.headers.get("Content-Length")
        if length is not None and not (re.fullmatch(r"\d{1,18}", length) and int(length) == size):
            raise Misbehaved(f"Content-Length {shown(length)} where the hub lists {size}")
        whole = (start, stop) != (0, size)
        return Answer(response, 0, size, whole, etag, found)
    expected = f"bytes {start}-{stop - 1}/{size}"
    given = response.headers.get("Content-Range", "")
    if given.replace("/*", f"/{size}") != expected:
        raise Misbehaved(f"Content-Range {shown(given)} where {expected!r} was asked for")
    return Answer(response, start, stop, False, etag, found)
