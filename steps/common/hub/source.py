"""A server that files come from: the hub itself, or a mirror of it.

The three requests of the hub's protocol that a download needs: what a revision is, which files it
has (in pages), and where a file's content is (https://huggingface.co/docs/hub/api, and the answers
that huggingface_hub's client expects). Only the hub is asked for the first two; a mirror gives
bytes, and what it says of them must agree.
"""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from runbook.protocol import StepFailure
from runbook.steps.common import http
from runbook.steps.common.hub import refusals, untrusted
from runbook.steps.common.hub.inquiry import Inquiry
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.refusals import Busy
from runbook.steps.common.network import absolute, origin, split_login
from runbook.steps.common.pacing import within

if TYPE_CHECKING:
    import requests

PUBLIC = "https://huggingface.co"
TIMEOUT = 10.0
"""Seconds that the hub may be silent for when it is asked for metadata."""
PAGE_BYTES = 64 << 20
"""More than a page of the hub has by far: it lists a thousand files."""
MOST_FILES = 1_000_000
READ = 1 << 16
Patterns = Mapping[str, list[str]]
"""Which files: those that one of `allow` matches (empty: all), but none of `ignore`."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where the content of a file is, and what to say there. `inquiry` is given where the hub is
    asked for it: it looks at what the hub says on the way. Without one it may expire."""

    url: str
    authorization: str = ""
    inquiry: Inquiry | None = None


class Source:
    """Safe to use from several threads."""

    def __init__(
        self, url: str, token: str | None, repo_type: str = "model", timeout: float | None = None
    ) -> None:
        self.endpoint, login = split_login(url.rstrip("/"))
        self.repo_type = repo_type
        self.timeout = timeout or TIMEOUT
        self._authorization = login or (f"Bearer {token}" if token else "")

    def commit(self, repo: str, revision: str, seconds: float = 600.0) -> str:
        """What a branch or tag is, within so many seconds. Raises Busy or StepFailure."""
        refusals.require_online()
        refusals.require_name(repo)
        deadline = time.monotonic() + seconds

        def ask() -> str:
            try:
                with http.session(timeout=self.timeout) as session:
                    api = f"{self.endpoint}/api/{self.repo_type}s/{repo}"
                    return self._resolve(session, repo, api, revision, deadline)
            except untrusted.Malformed as error:
                raise untrusted.bad_answer(self.endpoint, error) from error

        return within(seconds, ask, Busy(f"{self.endpoint} does not end its answer", cut=True))

    def list(self, repo: str, revision: str, files: Patterns, seconds: float = 600.0) -> Listing:
        """Resolve the revision and list the wanted files, within so many seconds. Raises Busy or
        StepFailure."""
        refusals.require_online()
        refusals.require_name(repo)
        # In a thread: a server may drip the head of an answer, byte by byte, for hours.
        return within(
            seconds,
            lambda: self._list(repo, revision, files, seconds),
            Busy(f"{self.endpoint}: its listing does not come to an end", cut=True),
        )

    def _list(self, repo: str, revision: str, files: Patterns, seconds: float) -> Listing:
        api = f"{self.endpoint}/api/{self.repo_type}s/{repo}"
        deadline = time.monotonic() + seconds
        try:
            with http.session(timeout=self.timeout) as session:
                commit = self._resolve(session, repo, api, revision, deadline)
                pages = self._entries(session, repo, f"{api}/tree/{commit}", deadline)
                found = [
                    untrusted.file(whole)
                    for kind, path, whole in pages
                    if kind == "file" and wanted(path, files)
                ]
            entries = untrusted.files(found)
        except untrusted.Malformed as error:
            raise untrusted.bad_answer(self.endpoint, error) from error
        if not entries:
            raise StepFailure(
                f"no file of {repo} matches the step's patterns",
                code="nothing_to_download",
                remedy="correct `files` in the document",
            )
        return Listing(repo, commit, entries)

    def location(self, listing: Listing, entry: Entry) -> Location:
        """Where to ask for a file's content."""
        folder = "datasets/" if self.repo_type == "dataset" else ""
        path = f"{folder}{listing.repo}/resolve/{listing.revision}/{quote(entry.path)}"
        inquiry = Inquiry(self.endpoint, self.page(listing.repo), listing, entry)
        return Location(f"{self.endpoint}/{path}", self._authorization, inquiry)

    def page(self, repo: str) -> str:
        """What a person looks at."""
        folder = "datasets/" if self.repo_type == "dataset" else ""
        return f"{self.endpoint}/{folder}{quote(repo)}"

    def _resolve(
        self, session: requests.Session, repo: str, api: str, revision: str, deadline: float
    ) -> str:
        url = f"{api}/revision/{quote(revision, safe='')}"
        info = untrusted.mapping(self._json(session, repo, url, deadline)[0], "the answer")
        commit = untrusted.commit(info.get("sha"), "`sha`")
        if untrusted.COMMIT.fullmatch(revision.lower()) and commit != revision.lower():
            raise refusals.other_revision(self.endpoint, revision, commit)
        if info.get("gated"):
            # Its listing is open, its files are not: ask now.
            self._ask(session, repo, f"{api}/auth-check", deadline)
        return commit

    def _entries(
        self, session: requests.Session, repo: str, url: str, deadline: float
    ) -> Iterator[tuple[str, str, Any]]:
        """All entries of a tree, page by page. Each page must bring new ones, so it ends."""
        following: str | None = f"{url}?recursive=true&expand=false"
        seen: set[str] = set()
        while following:
            page, link = self._json(session, repo, following, deadline)
            if not isinstance(page, list):
                raise untrusted.Malformed("a page of the listing", page, "a list")
            if link and not page:
                raise untrusted.Malformed("a page of the listing", page, "worth the next one")
            for entry in map(untrusted.entry, page):
                if entry[1] in seen:
                    raise untrusted.Malformed("`path`", entry[1], "listed once")
                seen.add(entry[1])
                yield entry
            if len(seen) > MOST_FILES:
                count = len(seen)
                raise untrusted.Malformed("the listing", count, f"at most {MOST_FILES} entries")
            following = self._next(following, link)

    def _next(self, url: str, link: str | None) -> str | None:
        if not link:
            return None
        if target := absolute(url, link):
            return target
        raise untrusted.Malformed("`Link`", link, "the address of the next page")

    def _json(
        self, session: requests.Session, repo: str, url: str, deadline: float
    ) -> tuple[Any, str | None]:
        """An answer, and the address of the next page of it."""
        body, response = self._ask(session, repo, url, deadline)
        try:
            return json.loads(body), response.links.get("next", {}).get("url")
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("Content-Type", "")
            if "html" in kind or body.lstrip()[:1] == b"<":
                raise Busy(refusals.no_hub(self.endpoint)) from error
            start = body[:60].decode(errors="replace")
            raise untrusted.Malformed("the answer", start, "JSON") from error

    def _ask(
        self, session: requests.Session, repo: str, url: str, deadline: float
    ) -> tuple[bytes, requests.Response]:
        import requests

        headers = {}
        if self._authorization and origin(url) == origin(self.endpoint):
            headers["Authorization"] = self._authorization  # a next page may be another host's
        try:
            with session.get(url, headers=headers, stream=True) as response:
                status = response.status_code
                if status >= 400:
                    raise refusals.of(
                        self.endpoint, self.page(repo), repo, status, response.headers
                    )
                return self._body(response, deadline), response
        except (requests.RequestException, ValueError) as error:
            if isinstance(error, untrusted.Malformed):
                raise
            failure = http.failure(error, url, self.endpoint)
            if not failure.retryable:
                raise failure from error
            raise Busy(f"{failure.message}: {failure.cause}") from error

    def _body(self, response: requests.Response, deadline: float) -> bytes:
        parts, size = [], 0
        for part in response.iter_content(READ):
            parts.append(part)
            size += len(part)
            if size > PAGE_BYTES:
                raise untrusted.Malformed("the answer", f"{size} bytes and more", "a page")
            if time.monotonic() > deadline:
                raise Busy(f"{self.endpoint}: its listing does not come to an end", cut=True)
        if time.monotonic() > deadline:
            raise Busy(f"{self.endpoint}: its listing does not come to an end", cut=True)
        return b"".join(parts)


def sources(
    endpoint: str | None, mirrors: list[str], token: str | None, repo_type: str = "model"
) -> list[Source]:
    """The hub, then the mirrors. Those are other people's servers: they get no token."""
    first = endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC
    refusals.require_address(first, "`endpoint`" if endpoint else "HF_ENDPOINT")
    for mirror in mirrors:
        refusals.require_address(mirror, "an address of `mirrors`")
    return [
        Source(first, token, repo_type),
        *(Source(mirror, None, repo_type) for mirror in mirrors),
    ]


def wanted(path: str, files: Patterns) -> bool:
    """Whether a path is chosen; patterns as huggingface_hub understands them."""

    def matches(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(path, p + "*" if p.endswith("/") else p) for p in patterns)

    return (not files["allow"] or matches(files["allow"])) and not matches(files["ignore"])
