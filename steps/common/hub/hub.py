"""The hub as huggingface_hub knows it: listing, authorization, where a file's content is.

Importing huggingface_hub takes a third of a second, so only `apply`, and a `check` that has work
to estimate, come here.
"""

from __future__ import annotations

import fnmatch
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from runbook.protocol import Context, PreconditionNotMet, StepFailure
from runbook.steps.common.hub.listing import Digest, Entry, Listing
from runbook.steps.common.pacing import retry_after

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another try may not meet."""
AGENT = "runbook"
TIMEOUT = 10.0
"""Seconds that the hub may be silent for when it is asked for metadata."""
RESERVED = ".runbook-weights"
"""Names of our own records in the destination."""


class Busy(Exception):
    """The hub is throttling, failing or out of reach: try again, after `wait` seconds if given."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Location:
    """Where the content of a file is now, and what to send along. It may expire."""

    url: str
    headers: Mapping[str, str]


class Hub:
    """One endpoint: the hub itself or a mirror. Safe to use from several threads."""

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        timeout: float | None = None,
        repo_type: str = "model",
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self.repo_type = repo_type
        self.timeout = timeout or TIMEOUT
        # `False` keeps the client from adding a token that it finds by itself.
        self.api = HfApi(endpoint=self.endpoint, token=token or False, library_name=AGENT)

    def list(self, repo: str, revision: str, files: Mapping[str, list[str]]) -> Listing:
        """Resolve the revision and list the wanted files. Raises Busy or StepFailure."""
        with self._explained(repo), impatient(self.timeout):
            kind = self.repo_type
            info = self.api.repo_info(repo, revision=revision, repo_type=kind, timeout=self.timeout)
            commit = str(info.sha)
            if info.gated:
                # Its listing is open, its files are not: ask now.
                self.api.auth_check(repo, repo_type=kind)
            found = [
                _entry(file)
                for file in self.api.list_repo_tree(
                    repo, recursive=True, revision=commit, repo_type=kind
                )
                if isinstance(file, RepoFile) and wanted(file.path, files)
            ]
        if not found:
            raise StepFailure(
                f"no file of {repo} matches the step's patterns",
                code="nothing_to_download",
                remedy="correct `files` in the document",
            )
        return Listing(repo, commit, tuple(sorted(found, key=lambda e: e.path)))

    def locate(self, listing: Listing, entry: Entry) -> Location:
        """Ask the hub for a file's content location. Raises Busy or StepFailure."""
        url = hf_hub_url(
            listing.repo,
            entry.path,
            revision=listing.revision,
            repo_type=self.repo_type,
            endpoint=self.endpoint,
        )
        with self._explained(listing.repo):
            found = get_hf_file_metadata(
                url,
                token=self.token or False,
                timeout=self.timeout,
                endpoint=self.endpoint,
                library_name=AGENT,
            )
        if found.etag is None and found.commit_hash is None:
            raise Busy(f"{self.endpoint} does not answer as a hub: a proxy or a login page?")
        # A mirror's ETag may be of another kind; one of the digest's kind must be the digest.
        comparable = re.fullmatch(rf"[0-9a-f]{{{len(entry.digest.value)}}}", found.etag or "")
        other = comparable is not None and found.etag != entry.digest.value
        if other or found.size not in (None, entry.size):
            raise StepFailure(
                f"{self.endpoint} has another {entry.path} than {listing.revision[:12]} lists",
                code="changed_upstream",
                cause=f"listed: {entry.digest}, {entry.size} bytes; served: {found.etag}, "
                f"{found.size} bytes",
                remedy="run again; if it stays so, the mirror or the repository is not to be "
                "trusted: choose another endpoint or revision",
                retryable=True,
            )
        return Location(found.location, self._headers(found.location))

    def _headers(self, url: str) -> dict[str, str]:
        """The token goes to the hub's own origin only, never to where the content is kept."""
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        if self.token and url.startswith(self.endpoint + "/"):
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    @contextmanager
    def _explained(self, repo: str) -> Iterator[None]:
        """Turn the client's exceptions into ours."""
        folder = "datasets/" if self.repo_type == "dataset" else ""
        page = f"{self.endpoint}/{folder}{quote(repo)}"
        try:
            yield
        except GatedRepoError as error:
            raise PreconditionNotMet(
                f"{repo} is gated: its owner must let you in",
                code="gated_repository",
                cause=_reason(error),
                remedy=f"ask for access at {page}, then set HF_TOKEN or run `hf auth login`",
            ) from error
        except RevisionNotFoundError as error:
            raise StepFailure(
                f"{repo} has no such revision",
                code="revision_not_found",
                cause=_reason(error),
                remedy=f"choose one of {page}/commits/main",
            ) from error
        except RemoteEntryNotFoundError as error:
            raise StepFailure(
                f"{self.endpoint} lacks a file that {repo} lists",
                code="file_not_found",
                cause=_reason(error),
                remedy="choose another endpoint or revision",
            ) from error
        except RepositoryNotFoundError as error:
            raise PreconditionNotMet(
                f"{repo} does not exist, or is private and your token may not read it",
                code="repository_not_found",
                cause=_reason(error),
                remedy=f"look at {page}; for a private one set HF_TOKEN or run `hf auth login`",
            ) from error
        except HFValidationError as error:
            raise StepFailure(
                f"{repo} is no name of a repository",
                code="invalid_repository",
                cause=_first_line(error),
                remedy="correct `repo` in the document",
            ) from error
        except OfflineModeIsEnabled as error:
            raise PreconditionNotMet(
                "the hub's client is in offline mode",
                code="offline",
                cause=str(error),
                remedy="unset HF_HUB_OFFLINE",
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in BUSY:
                wait = asked_wait(error.response.headers)
                raise Busy(f"{self.endpoint} answers {status}", wait) from error
            raise StepFailure(
                f"{self.endpoint} refuses {repo}: status {status}",
                code="hub_refused",
                cause=_reason(error),
                remedy=f"look at {page}; a token needs the right to read this repository"
                if status in (401, 403)
                else "",
            ) from error
        except httpx2.TooManyRedirects as error:
            raise StepFailure(
                f"{self.endpoint} redirects without end",
                code="redirect_loop",
                cause=str(error),
                remedy="check the endpoint and the proxy in between",
            ) from error
        except (httpx2.TransportError, FileMetadataError, ValueError) as error:
            if certificate := certificate_error(error):
                raise tls_failure(self.endpoint, certificate) from error
            raise Busy(f"{self.endpoint}: {_first_line(error)}") from error


def hubs(
    endpoint: str | None, mirrors: list[str], token: str | None, repo_type: str = "model"
) -> list[Hub]:
    """The endpoint, then the mirrors. Those are other people's servers: they get no token."""
    first = endpoint or os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
    return [
        Hub(first, token, repo_type=repo_type),
        *(Hub(mirror, None, repo_type=repo_type) for mirror in mirrors),
    ]


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """How long the server wants to be left alone: Retry-After, else the hub's RateLimit."""
    wait = retry_after(headers.get("Retry-After"))
    if wait is not None:
        return wait
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


@contextmanager
def impatient(timeout: float) -> Iterator[None]:
    """Make huggingface_hub report a busy or silent hub at once, for the time of a listing.

    Its paged listing sets no time limit and sleeps through up to five Retry-After of any length;
    how long to wait is for the step's inputs to say.
    """
    session = huggingface_hub.get_session()
    before = session.event_hooks

    def limit(request: httpx2.Request) -> None:
        request.extensions["timeout"] = httpx2.Timeout(timeout).as_dict()

    def report(response: httpx2.Response) -> None:
        if response.status_code in BUSY:
            wait = asked_wait(response.headers)
            raise Busy(f"{response.url.host} answers {response.status_code}", wait)

    session.event_hooks = {
        "request": [*before.get("request", []), limit],
        "response": [*before.get("response", []), report],
    }
    try:
        yield
    finally:
        session.event_hooks = before


def token(ctx: Context) -> str | None:
    """The declared secret HF_TOKEN, else the login of the hub's own tools."""
    try:
        declared = ctx.secret("HF_TOKEN")
    except StepFailure as failure:
        if failure.code != "undeclared_secret":
            raise
        declared = None
    return declared or login_token()


def login_token() -> str | None:
    """The token of `hf auth login`. Not the one of the environment: that is a secret, which the
    document must declare so that it is kept out of logs."""
    hidden = {
        name: os.environ.pop(name)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
        if name in os.environ
    }
    try:
        return huggingface_hub.get_token()
    finally:
        os.environ.update(hidden)


def wanted(path: str, files: Mapping[str, list[str]]) -> bool:
    """Whether a path is chosen; patterns as huggingface_hub understands them."""

    def matches(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(path, p + "*" if p.endswith("/") else p) for p in patterns)

    return (not files["allow"] or matches(files["allow"])) and not matches(files["ignore"])


def _entry(file: RepoFile) -> Entry:
    parts = PurePosixPath(file.path).parts
    reserved = any(part.startswith(RESERVED) for part in parts)
    if not parts or file.path.startswith("/") or ".." in parts or reserved:
        raise StepFailure(
            f"the repository lists {file.path!r}, which cannot be written",
            code="unsafe_path",
            remedy="do not use this repository",
        )
    if file.lfs is not None:
        return Entry(file.path, file.lfs.size, Digest("sha256", file.lfs.sha256))
    return Entry(file.path, file.size, Digest("git-sha1", file.blob_id))


def _reason(error: HfHubHTTPError) -> str:
    """The hub's own words, if it sent any."""
    message = error.response.headers.get("X-Error-Message") or error.server_message
    return str(message or _first_line(error))


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The refused certificate behind an exception of a client library."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        seen.add(id(error))
        reason: Any = getattr(error, "reason", None)
        error = (
            reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
        )
    return None


def tls_failure(server: str, error: ssl.SSLCertVerificationError) -> StepFailure:
    return PreconditionNotMet(
        f"the certificate of {server} cannot be verified",
        code="tls_failure",
        cause=error.verify_message or str(error),
        remedy="set SSL_CERT_FILE to the certificates of your proxy, or set the clock right",
    )
