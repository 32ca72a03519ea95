"""What a hub's refusals mean, in words: busy servers, closed doors, and answers that contradict."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.http import BUSY
from runbook.steps.common.network import absolute
from runbook.steps.common.pacing import retry_after
from runbook.units import duration

_RATELIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*(\d{1,9})\s*;\s*t\s*=\s*(\d{1,9})')
"""draft-ietf-httpapi-ratelimit-headers-09, as the hub sends it: `"api";r=0;t=55`."""
TOO_MANY_REQUESTS = 429
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_INVALID_TOKEN = "Invalid credentials"


class Busy(Exception):
    """The hub is throttling, failing or out of reach: try again, after `wait` seconds if given.
    `limits`: it answers, and has been asked too often. `cut`: the time that it was given is over,
    be it ever so short."""

    def __init__(
        self,
        message: str,
        wait: float | None = None,
        *,
        limits: bool = False,
        cut: bool = False,
    ) -> None:
        super().__init__(message)
        self.wait = wait
        self.limits = limits
        self.cut = cut


class Contradiction(StepFailure):
    """A server says of a file what does not agree with what the hub has said."""


def require_online() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise PreconditionNotMet(
            "the hub's client is in offline mode",
            code="offline",
            cause=f"HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']}",
            remedy=Remedy("run", text="unset HF_HUB_OFFLINE, then {command}"),
        )


def require_address(url: str, name: str) -> None:
    """Raise PreconditionNotMet for what is no address of a server. It is not shown: a password may
    be in it."""
    if absolute(url, url) is None:
        raise PreconditionNotMet(
            f"{name} is no address of a server",
            code="bad_endpoint",
            cause="a hub's address is http://HOST or https://HOST, with a port or a path",
            remedy=Remedy("run", text=f"correct {name}, then {{command}}"),
        )


def require_name(repo: str) -> None:
    """The hub's rules for names (huggingface_hub.utils.validate_repo_id)."""
    if (
        not _NAME.fullmatch(repo)
        or "--" in repo
        or ".." in repo
        or repo.endswith((".git", ".", "-"))
        or len(repo) > 96 * 2
    ):
        raise StepFailure(
            f"{repo} is no name of a repository",
            code="invalid_repository",
            remedy="correct `repo` in the document",
        )


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """How long the server wants to be left alone: Retry-After, else the hub's RateLimit."""
    wait = retry_after(headers.get("Retry-After"))
    if wait is not None:
        return wait
    value = next((v for k, v in headers.items() if k.lower() == "ratelimit"), "")
    limit = _RATELIMIT.search(value)
    return float(limit[2]) if limit and int(limit[1]) == 0 else None


def no_hub(endpoint: str) -> str:
    return f"{endpoint} does not answer as a hub: a proxy or a login page?"


def of(
    endpoint: str, page: str, repo: str, status: int, headers: Mapping[str, str]
) -> Busy | StepFailure:
    """What an answer of failure means. The hub says it in X-Error-Code and X-Error-Message."""
    if status in BUSY:
        limits = status == TOO_MANY_REQUESTS
        return Busy(f"{endpoint} answers {status}", asked_wait(headers), limits=limits)
    code = headers.get("X-Error-Code", "")
    said = _words(headers.get("X-Error-Message", "")) or f"HTTP status {status}"
    login = "set HF_TOKEN or run `hf auth login`, then {command}"
    if code == "GatedRepo":
        return PreconditionNotMet(
            f"{repo} is gated: its owner must let you in",
            code="gated_repository",
            cause=said,
            remedy=Remedy("run", text=f"ask for access at {page}, {login}"),
        )
    if code == "RevisionNotFound":
        return StepFailure(
            f"{repo} has no such revision",
            code="revision_not_found",
            cause=said,
            remedy=f"choose one of {page}/commits/main",
        )
    if code == "EntryNotFound":
        return StepFailure(
            f"{endpoint} lacks a file that {repo} lists",
            code="file_not_found",
            cause=said,
            remedy="choose another endpoint or revision",
        )
    if code == "RepoNotFound" or (status == 401 and not said.startswith(_INVALID_TOKEN)):
        return PreconditionNotMet(
            f"{repo} does not exist, or is private and your token may not read it",
            code="repository_not_found",
            cause=said,
            remedy=Remedy("run", text=f"look at {page}; for a private one {login}"),
        )
    rights = "; a token needs the right to read this repository" if status in (401, 403) else ""
    return StepFailure(
        f"{endpoint} refuses {repo}: status {status}",
        code="hub_refused",
        cause=said,
        remedy=Remedy("run", text=f"look at {page}{rights}, then {{command}}"),
        retryable=status >= 500,
    )


def unlisted(repo: str, busy: Busy, last: Busy) -> StepFailure:
    """Why a hub that was asked again and again, as long as patience lasts, gives no listing:
    what it said before the end of patience cut it off, and what came last."""
    cause = str(busy) if busy is last else f"{busy}; then: {last}"
    if busy.limits:
        later = f"in {duration(busy.wait)}" if busy.wait else "later"
        return StepFailure(
            f"the hub limits how often it is asked, and does not list {repo}",
            code="hub_rate_limited",
            cause=cause,
            remedy=Remedy(
                "run", text=f"{{command}} {later}, or with HF_TOKEN set: its limit is higher"
            ),
            retryable=True,
        )
    return StepFailure(
        f"the hub does not list {repo}",
        code="hub_unreachable",
        cause=cause,
        remedy=Remedy("run", text="check the network and the endpoint, then {command}"),
        retryable=True,
    )


def other_revision(endpoint: str, wanted: str, given: str) -> Contradiction:
    """`given`: the commit that was answered with, or "" for none."""
    return Contradiction(
        f"{endpoint} answers with {given[:12] or 'no revision'} where {wanted[:12]} was asked for",
        code="other_revision",
        cause=f"asked for: {wanted}; answered: {given or 'nothing'}",
        remedy="this server is not to be trusted: choose another endpoint, or another revision",
    )


def changed_upstream(endpoint: str, path: str, listed: str, served: str) -> Contradiction:
    return Contradiction(
        f"{endpoint} has another {path} than was listed",
        code="changed_upstream",
        cause=f"listed: {listed}; served: {served}",
        remedy=Remedy(
            "run",
            text="{command}; if it stays so, the mirror or the repository is not to be trusted: "
            "choose another endpoint or revision",
        ),
        retryable=True,
    )


def _words(said: str) -> str:
    """What a server says, fit for a terminal and a log."""
    return "".join(c for c in said[:300] if c.isprintable()).strip()
