"""The transport of our HTTP sessions: the settings count for each redirect too."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from runbook.steps.common import network

__all__ = ["Adapter", "requests"]

CONNECT_TIMEOUT = 10.0


class Adapter(HTTPAdapter):
    """`local`: to servers of this machine, past any proxy. `timeout`: of a request that has none
    of its own, in seconds."""

    def __init__(self, local: bool, timeout: float) -> None:
        super().__init__()
        self._local = local
        self._timeout = timeout

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        url = request.url or ""
        proxy = None if self._local else network.proxy_for(url)
        if timeout is None:
            timeout = (min(CONNECT_TIMEOUT, self._timeout), self._timeout)
        chosen = {urlsplit(url).scheme: proxy} if proxy else {}
        return super().send(request, stream, timeout, True, cert, chosen)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": network.trust()} if host["scheme"] == "https" else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing more: the context of the connection says whom to trust."""

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        if str(proxy).startswith("https:"):
            options["proxy_ssl_context"] = network.trust()
        return super().proxy_manager_for(proxy, **options)
