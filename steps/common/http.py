"""HTTP for all steps: sessions of `requests` by the settings of network.py, and failures in words.

Nothing of the environment but those settings takes part: no ~/.netrc, no cookies of before.
`requests` takes a tenth of a second to import, so it is imported where a session is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.redact import without_password
from runbook.remedy import Remedy
from runbook.steps.common.network import proxy_for

if TYPE_CHECKING:
    import ssl

    import requests

AGENT = "runbook"
TIMEOUT = 30.0
"""Seconds that a server may be silent for."""
REDIRECTS = 5
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another try may not meet."""

_AGAIN = "then {command}"


def session(*, local: bool = False, timeout: float = TIMEOUT) -> requests.Session:
    """A session with the environment's settings; `local`: to a server on this machine, past any
    proxy. A request without a `timeout` of its own has this one, in seconds. Raises
    PreconditionNotMet, on a request, for settings that cannot be used."""
    from runbook.steps.common.transport import Adapter, requests

    made = requests.Session()
    made.trust_env = False
    made.max_redirects = REDIRECTS
    made.headers["User-Agent"] = AGENT
    for prefix in ("http://", "https://"):
        made.mount(prefix, Adapter(local, timeout))
    return made


def certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The refused certificate behind an exception of a client library."""
    import ssl

    return next((e for e in _behind(error) if isinstance(e, ssl.SSLCertVerificationError)), None)


def tls_failure(server: str, error: ssl.SSLCertVerificationError) -> StepFailure:
    return PreconditionNotMet(
        f"the certificate of {without_password(server)} cannot be verified",
        code="tls_failure",
        cause=error.verify_message or str(error),
        remedy=Remedy(
            "run",
            text="set SSL_CERT_FILE to the certificates of your proxy, or set the clock right, "
            + _AGAIN,
        ),
    )


def failure(error: Exception, url: str, what: str = "") -> StepFailure:
    """A request that got no answer, as a failure; `what` was asked for, in words. `error` is an
    exception of `requests` or of urllib3; a StepFailure is handed back as it is."""
    if isinstance(error, StepFailure):
        return error
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return refusal(error.response.status_code, url, what)
    server = _server(url)
    what = what or server
    if certificate := certificate_error(error):
        return tls_failure(server, certificate)
    fields: dict[str, Any] = {"cause": reason(error), "where": without_password(url)}
    if isinstance(error, requests.TooManyRedirects):
        return StepFailure(
            f"{server} redirects without end",
            code="redirect_loop",
            remedy=Remedy("run", text=f"check the address and the proxy in between, {_AGAIN}"),
            **fields,
        )
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema,
                          requests.exceptions.MissingSchema)):  # fmt: skip
        return StepFailure(
            f"{without_password(url)} is no address that can be asked", code="bad_url", **fields
        )
    if isinstance(error, requests.exceptions.ProxyError):
        proxy = proxy_for(url) or ""
        return StepFailure(
            f"the proxy {_server(proxy)} does not lead to {server}",
            code="proxy_failed",
            remedy=Remedy("run", text=f"check HTTPS_PROXY and NO_PROXY, {_AGAIN}"),
            retryable=True,
            **fields,
        )
    if isinstance(error, requests.Timeout):
        words, code = f"{what} does not answer in time", "timed_out"
    else:
        words, code = f"{what} cannot be reached", "unreachable"
    return StepFailure(
        words,
        code=code,
        remedy=Remedy("run", text=f"check the network and the proxy, {_AGAIN}"),
        retryable=True,
        **fields,
    )


# status: code, words after "the server", what to do; 5xx are as 500.
_REFUSALS = {
    401: ("access_denied", "wants to know who asks", "log in or set the token"),
    403: ("access_denied", "does not let us have", "ask its owner for access, or check the proxy"),
    404: ("not_found", "does not have", "correct the address"),
    407: ("proxy_failed", "is behind a proxy that wants a login for", "set it in HTTPS_PROXY"),
    410: ("not_found", "no longer has", "correct the address"),
    429: ("throttled", "wants to be left alone for a while about", "wait a little"),
    500: ("server_failed", "fails at", "wait a little"),
}


def refusal(status: int, url: str, what: str = "") -> StepFailure:
    """An answer with a status of failure, as a failure; `what` was asked for, in words."""
    known = _REFUSALS.get(500 if status >= 500 else status)
    code, words, advice = known or ("refused", "does not give", "correct the address")
    return StepFailure(
        f"{_server(url)} {words} {what or urlsplit(url).path or '/'}",
        code=code,
        cause=f"HTTP status {status}",
        remedy=Remedy("run", text=f"{advice}, {_AGAIN}"),
        retryable=status in BUSY or status >= 500,
        where=without_password(url),
    )


def reason(error: BaseException) -> str:
    """The innermost cause of a client library's exception, in its words and without passwords."""
    words = [first_line(e) for e in _behind(error)]
    return without_password(words[-1] if words[-1] else type(error).__name__)


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what caused it. Client libraries keep the cause in `reason` or among the
    arguments."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        inner = [getattr(error, "reason", None), *error.args]
        within = next((e for e in inner if isinstance(e, BaseException)), None)
        error = within or error.__cause__ or error.__context__


def _server(url: str) -> str:
    return without_password(url).partition("://")[2].partition("/")[0] or url
