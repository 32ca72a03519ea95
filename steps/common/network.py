"""The environment's network settings, read in one way for every client.

| setting | from |
|---|---|
| proxy | HTTP_PROXY, HTTPS_PROXY, else ALL_PROXY; the names in lower case come first |
| servers without a proxy | NO_PROXY: hosts with their subdomains, addresses, networks, `*` |
| certificates | REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE, SSL_CERT_DIR; certifi's |

An entry of NO_PROXY may have a port. This machine itself (localhost, loopback addresses) is never
asked for through a proxy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.redact import without_password
from runbook.remedy import Remedy

if TYPE_CHECKING:
    import ssl

CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""All that are set count; certifi's are believed where none names a file."""
PORTS = {"http": 80, "https": 443}

_LOGIN = re.compile(r"([a-z]+://)([^/@\s]*)@", re.IGNORECASE)
_AGAIN = "then {command}"


def split_login(url: str) -> tuple[str, str]:
    """A URL without its login, and that as the header Authorization would say it, or ""."""
    found = _LOGIN.match(url)
    if not found:
        return url, ""
    from base64 import b64encode
    from urllib.parse import unquote

    login = b64encode(unquote(found[2]).encode()).decode()
    return found[1] + url[found.end() :], f"Basic {login}"


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what may be told the same secrets. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or PORTS.get(parts.scheme)


def absolute(base: str, given: str) -> str | None:
    """Where a link or a redirect of `base` leads; None for nowhere."""
    try:
        parts = urlsplit(given)
        if not parts.netloc and (parts.scheme or given.startswith("//")):
            return None
        target = urljoin(base, given)
        return target if urlsplit(target).scheme in PORTS and origin(target)[1] else None
    except ValueError:
        return None


# Proxies


def proxy_for(url: str) -> str | None:
    """The proxy through which a URL is asked for; None for none. Raises PreconditionNotMet."""
    parts = urlsplit(url)
    name, given = _proxy_setting(parts.scheme)
    if not given or _without_proxy(parts):
        return None
    proxy = given if "://" in given else f"http://{given}"
    try:
        found = urlsplit(proxy)
        usable = bool(found.hostname) and (found.port is None or found.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise _unusable(f"{name} is no URL of a proxy: {without_password(proxy)}", url)
    if found.scheme.startswith("socks"):
        raise _unusable(f"{name} names a SOCKS proxy, which runbook does not speak to", url)
    if found.scheme not in PORTS:
        raise _unusable(f"{name} names a proxy of an unknown kind, {found.scheme}", url)
    return proxy


def _proxy_setting(scheme: str) -> tuple[str, str]:
    """The variable that counts, and its value. As everywhere, HTTP_PROXY is not believed in a
    CGI script, where a client can set it."""
    for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if name == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ:
            continue
        if name in os.environ:
            return name, os.environ[name].strip()
    return "", ""


def _unusable(why: str, url: str) -> StepFailure:
    host = urlsplit(url).hostname
    return PreconditionNotMet(
        why,
        code="proxy_not_supported",
        cause=f"it is set for {host}",
        remedy=Remedy(
            "run",
            text=f"set HTTPS_PROXY to a proxy that speaks HTTP, or NO_PROXY={host} if it can be "
            f"reached without one, {_AGAIN}",
        ),
    )


def _without_proxy(parts: SplitResult) -> bool:
    host = (parts.hostname or "").lower().rstrip(".")
    address = _address(host)
    if host == "localhost" or host.endswith(".localhost") or (address and address.is_loopback):
        return True
    port = str(parts.port or PORTS.get(parts.scheme))
    return any(_matches(entry, host, address, port) for entry in _exceptions())


def _exceptions() -> Iterator[str]:
    given = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    yield from (entry.lower() for entry in re.split(r"[,\s]+", given) if entry)


def _matches(entry: str, host: str, address: Any, port: str) -> bool:
    if entry == "*":
        return True
    with suppress(ValueError):
        network = ip_network(entry.strip("[]"), strict=False)
        return address is not None and address in network
    name, _, wanted = entry.rpartition(":")
    if name and wanted.isdecimal():
        if wanted != port:
            return False
        entry = name.strip("[]")
        if (one := _address(entry)) is not None:
            return bool(one == address)
    entry = entry.removeprefix("*").strip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _address(host: str) -> Any:
    try:
        return ip_address(host)
    except ValueError:
        return None


# Certificates


def trust() -> ssl.SSLContext:
    """The certificate authorities that are believed. Raises PreconditionNotMet."""
    names = [name for name in CERTIFICATES if os.environ.get(name)]
    return _trust(tuple((name, os.environ[name]) for name in names))


@cache
def _trust(named: tuple[tuple[str, str], ...]) -> ssl.SSLContext:
    import ssl

    import certifi

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not any(name != "SSL_CERT_DIR" for name, _ in named):
        context.load_verify_locations(cafile=certifi.where())
    for name, given in named:
        path = Path(given).expanduser()
        try:
            folder = path.is_dir()
            context.load_verify_locations(
                cafile=None if folder else path, capath=path if folder else None
            )
        except OSError as error:  # no such file, or no certificates in it
            raise PreconditionNotMet(
                f"{name} names certificates that cannot be read: {path}",
                code="certificates_unreadable",
                cause=error.strerror or str(error),
                remedy=Remedy("run", text=f"correct or unset {name}, {_AGAIN}"),
                where=str(path),
            ) from error
    return context
