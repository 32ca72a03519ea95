"""A checkpoint on a hub: its config, index and headers by ranged requests, no weights."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from runbook import redact
from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.checkpoint.checkpoint import Checkpoint, CheckpointError, load
from runbook.steps.common import http
from runbook.steps.common.hub import login, refusals
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.refusals import Busy
from runbook.steps.common.hub.source import Source, sources

if TYPE_CHECKING:
    import requests

FIRST = 256 << 10
"""Bytes of a shard asked for at once: most headers fit, and one request is saved."""
THREADS = 16
TRIES = 3
LONGEST_WAIT = 10.0
"""Seconds between two tries, whatever the server asks for: someone sits in front of it."""
LISTING_SECONDS = 60.0
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json")
SMALL = 64 << 20
OWN = {"allow": [], "ignore": ["*/*"]}
"""The files of the repository's own folder."""

T = TypeVar("T")


def open_repository(reference: str, endpoint: str | None = None) -> Checkpoint:
    """The checkpoint of a repository, `org/name` or `org/name@revision`.

    Endpoint (unless given), token and network settings are those of the environment, as for the
    step `weights`. Raises `CheckpointError` for what is no checkpoint, `StepFailure` for a
    repository that cannot be read.
    """
    with _named(reference):
        reader, listing = _listed(reference, endpoint)
        sizes = {entry.path: entry.size for entry in listing.entries}
        return load(f"{listing.repo}@{listing.revision}", sizes, reader.fetch, THREADS)


def small_files(reference: str, into: Path, endpoint: str | None = None) -> None:
    """Write what a repository has besides weights into a folder: config, tokenizer, templates.
    Raises as `open_repository` does."""
    reader, listing = _listed(reference, endpoint)
    into.mkdir(parents=True, exist_ok=True)
    for entry in listing.entries:
        if not entry.path.endswith(WEIGHTS) and entry.size <= SMALL:
            (into / entry.path).write_bytes(reader.fetch(entry.path, 0, entry.size))


def _listed(reference: str, endpoint: str | None) -> tuple[Reader, Listing]:
    repository, _, revision = reference.partition("@")
    try:
        refusals.require_name(repository)
    except StepFailure as failure:
        raise CheckpointError(
            f"{reference} is neither a folder nor the name of a repository",
            "give the folder of a checkpoint, or org/name or org/name@revision on the hub",
        ) from failure
    variable = next((n for n in login.VARIABLES if os.environ.get(n)), "")
    redact.know(variable)
    source = sources(endpoint, [], os.environ.get(variable) or login.login_token())[0]
    listing = _patiently(lambda: source.list(repository, revision or "main", OWN, LISTING_SECONDS))
    return Reader(source, listing), listing


@contextmanager
def _named(reference: str) -> Iterator[None]:
    """Failures whose remedy would run a step name `lint` instead."""
    try:
        yield
    except StepFailure as failure:
        if isinstance(failure.remedy, Remedy) and failure.remedy.verb == "run":
            failure.remedy = Remedy("lint", (reference,), text=failure.remedy.text)
        raise


class Reader:
    """Reads files of a repository; safe to use from several threads."""

    def __init__(self, source: Source, listing: Listing) -> None:
        self._source = source
        self._listing = listing
        self._entries = {entry.path: entry for entry in listing.entries}
        self._begun: dict[str, bytes] = {}
        self._local = threading.local()

    def fetch(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes of a file, or those up to its end. Raises `StepFailure`."""
        entry = self._entries[name]
        length = min(length, entry.size - offset)
        if length <= 0:
            return b""
        if not name.endswith(".safetensors"):
            return self._ranged(entry, offset, length)
        if name not in self._begun:
            self._begun[name] = self._ranged(entry, 0, min(FIRST, entry.size))
        known = self._begun[name]
        if offset + length <= len(known):
            return known[offset : offset + length]
        rest = max(offset, len(known))
        return known[offset:rest] + self._ranged(entry, rest, offset + length - rest)

    def _ranged(self, entry: Entry, offset: int, length: int) -> bytes:
        return _patiently(lambda: self._ask(entry, offset, length))

    def _ask(self, entry: Entry, offset: int, length: int) -> bytes:
        import requests

        place = self._source.location(self._listing, entry)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if place.authorization:
            headers["Authorization"] = place.authorization
        try:
            with self._session().get(place.url, headers=headers, stream=True) as response:
                self._look(response, place.inquiry)
                return self._body(response, entry, offset, length)
        except requests.RequestException as error:
            failure = http.failure(error, place.url, entry.path)
            if not failure.retryable:
                raise failure from error
            raise Busy(f"{failure.message}: {failure.cause}") from error

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = http.session()
        session: requests.Session = self._local.session
        return session

    def _look(self, response: requests.Response, inquiry: Any) -> None:
        """Hold what the hub says on the way to the content against its listing."""
        said: dict[str, str] = {}
        for answer in (*response.history, response):
            if inquiry is not None and inquiry.concerns(answer.url):
                inquiry.look(answer.status_code, answer.headers, said)
        if response.status_code >= 400:
            page = self._source.page(self._listing.repo)
            raise refusals.of(
                self._source.endpoint,
                page,
                self._listing.repo,
                response.status_code,
                response.headers,
            )
        if inquiry is not None:
            inquiry.conclude(said)

    def _body(self, response: requests.Response, entry: Entry, offset: int, length: int) -> bytes:
        if response.status_code != 206 and offset:
            raise StepFailure(
                f"{entry.path}: the server sends whole files only",
                code="no_ranges",
                cause=f"HTTP status {response.status_code} for a range of the file",
                remedy="choose another endpoint (HF_ENDPOINT), or download the checkpoint and "
                "examine its folder",
            )
        parts, size = [], 0
        for part in response.iter_content(1 << 16):
            parts.append(part)
            size += len(part)
            if size >= length:
                break
        data = b"".join(parts)[:length]
        if len(data) < length:
            raise Busy(f"{entry.path}: the server sent {len(data)} of {length} bytes")
        return data


def _patiently(ask: Callable[[], T]) -> T:
    """What `ask` gives, asked again while the hub is busy. Raises `StepFailure`."""
    for left in reversed(range(TRIES)):
        try:
            return ask()
        except Busy as busy:
            if not left:
                raise StepFailure(
                    "the hub cannot be read now",
                    code="hub_busy",
                    cause=str(busy),
                    remedy=Remedy("run", text="wait a little, then {command}"),
                    retryable=True,
                ) from busy
            time.sleep(min(busy.wait or 2.0 ** (TRIES - left), LONGEST_WAIT))
    raise AssertionError
