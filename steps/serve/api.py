"""vLLM's own API, as far as a start asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runbook.steps.common import endpoint

if TYPE_CHECKING:
    import requests

PROBE_SECONDS = 5.0


class Unanswered(Exception):
    """No usable answer: no connection, an error status, or a malformed body."""


class Api:
    """One server on this machine; no proxy of the environment stands between."""

    def __init__(self, host: str, port: int, key: str | None = None) -> None:
        self.key = key
        self.address = endpoint.reachable(host)
        self.port = port
        self.base = endpoint.url(host, port)

    def healthy(self) -> bool:
        return endpoint.health(self.address, self.port, PROBE_SECONDS) == "healthy"

    def models(self) -> list[dict[str, Any]]:
        """What /v1/models lists: {id, max_model_len, ...} each."""
        listed = self._request("GET", "/v1/models", PROBE_SECONDS)
        try:
            return [{**model, "id": str(model["id"])} for model in listed.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Unanswered(f"the list of models is malformed: {listed.text[:500]}") from error

    def metrics(self) -> str:
        return self._request("GET", "/metrics", PROBE_SECONDS).text

    def post(self, path: str, body: Any, seconds: float) -> dict[str, Any]:
        """The answer to a request of this body, a JSON object."""
        answer = self._request("POST", path, seconds, body)
        try:
            value: dict[str, Any] = answer.json()
        except ValueError as error:
            raise Unanswered(f"the answer is not JSON: {answer.text[:500]}") from error
        return value

    def _request(
        self, method: str, path: str, seconds: float, body: Any = None
    ) -> requests.Response:
        from runbook.steps.common import http
        from runbook.steps.common.transport import requests

        with http.session(local=True) as session:
            if self.key is not None:
                session.headers["Authorization"] = f"Bearer {self.key}"
            try:
                answer = session.request(method, self.base + path, json=body, timeout=seconds)
            except requests.RequestException as error:
                raise Unanswered(f"{type(error).__name__}: {http.reason(error)}") from error
        if answer.status_code != 200:
            raise Unanswered(f"HTTP {answer.status_code}: {answer.text[:500]}")
        return answer
