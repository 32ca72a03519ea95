"""What a server says of a file on the way to its content, held against the listing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from runbook.steps.common.hub import refusals, untrusted
from runbook.steps.common.hub.listing import Entry, Listing
from runbook.steps.common.hub.refusals import Busy
from runbook.steps.common.network import origin

COMMIT, LINKED_ETAG, LINKED_SIZE = "X-Repo-Commit", "X-Linked-ETag", "X-Linked-Size"
UNSATISFIABLE = 416


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Asked at each answer on the way from a server's `resolve`. `page`: what a person looks at."""

    endpoint: str
    page: str
    listing: Listing
    entry: Entry

    def concerns(self, url: str) -> bool:
        """Whether the server itself answers there, not a store that it sends us to."""
        return origin(url) == origin(self.endpoint)

    def look(self, status: int, headers: Mapping[str, str], said: dict[str, str]) -> None:
        """Add to what was `said` what an answer of the server says. Raises Busy or StepFailure."""
        if status >= 400 and status != UNSATISFIABLE:
            raise refusals.of(self.endpoint, self.page, self.listing.repo, status, headers)
        for name in (COMMIT, LINKED_ETAG, LINKED_SIZE, "ETag"):
            if value := headers.get(name):
                said.setdefault(name, value)

    def conclude(self, said: Mapping[str, str]) -> None:
        """All is said. Raises Busy for what is no hub, StepFailure for a contradiction."""
        etag = said.get(LINKED_ETAG) or said.get("ETag", "")
        commit = said.get(COMMIT, "")
        if not etag and not commit:
            raise Busy(refusals.no_hub(self.endpoint))
        if commit != self.listing.revision:
            given = commit if untrusted.COMMIT.fullmatch(commit) else untrusted.shown(commit)
            raise refusals.other_revision(
                self.endpoint, self.listing.revision, given if commit else ""
            )
        self._compare(etag.strip().removeprefix("W/").strip('"'), said.get(LINKED_SIZE))

    def _compare(self, etag: str, given: str | None) -> None:
        size = self.entry.size
        if given is not None:
            if not re.fullmatch(r"\d{1,18}", given):
                raise untrusted.bad_answer(
                    self.endpoint,
                    untrusted.Malformed(f"{LINKED_SIZE} of {self.entry.path}", given, "a number"),
                )
            size = int(given)
        # A mirror's ETag may be of another kind; one of the digest's kind must be the digest.
        value = self.entry.digest.value
        comparable = re.fullmatch(rf"[0-9a-f]{{{len(value)}}}", etag) is not None
        if size != self.entry.size or (comparable and etag != value):
            listed = f"{self.entry.digest}, {self.entry.size} bytes"
            raise refusals.changed_upstream(
                self.endpoint, self.entry.path, listed, f"{untrusted.shown(etag)}, {size} bytes"
            )
