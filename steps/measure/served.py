"""The served model of a book, as far as one who measures it must know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from runbook.process import Identity
from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.common import http, nvml, serving
from runbook.steps.common.service import Service


class Book(TypedDict):
    """A book with what its runs recorded; of each step id, uses, with and outputs."""

    name: str
    workspace: Path
    inputs: list[str]
    steps: list[dict[str, Any]]
    command: Callable[..., str]


@dataclass(frozen=True, slots=True)
class Served:
    """`about` is what a result holds for: build, weights, profile, flags, environment."""

    endpoint: str
    model: str
    folder: Path
    process: Identity
    key: str | None
    about: dict[str, Any]

    @property
    def root(self) -> str:
        return self.endpoint.removesuffix("/v1")

    @property
    def devices(self) -> list[str] | None:
        """Its GPUs by number or UUID; None if it sees all there are."""
        return nvml.devices(self.about["env"])

    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def require_alive(self) -> None:
        """Raises StepFailure if the server that was measured is no more."""
        if not self.process.alive():
            raise StepFailure(
                "the server ended while it was measured",
                code="server_died",
                cause=f"process {self.process.pid} is gone",
                remedy=Remedy("logs", ("{step}", "--errors"), "serve"),
                where=self.endpoint,
            )

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers at a path of its root: GET, or POST of a body; text of
        `/metrics`, else JSON. Raises StepFailure."""
        from runbook.steps.common.transport import requests

        url = self.root + path
        with http.session(local=True) as session:
            session.headers.update(self.headers())
            try:
                answer = session.request("GET" if body is None else "POST", url, json=body)
                answer.raise_for_status()
                return answer.text if path == "/metrics" else answer.json()
            except (requests.RequestException, ValueError) as error:
                raise http.failure(error, url, "the served model") from error


def of_book(book: Book) -> Served:
    """The model that is served by what runs have recorded. Raises PreconditionNotMet if none is."""
    return of_step(book, serving.step_of(book["name"], book["steps"]))


def of_step(book: Book, step: Mapping[str, Any]) -> Served:
    """The model that a step serves by its outputs. Raises PreconditionNotMet if it does not."""
    known = step["outputs"]
    process = Identity.load(known["process"]) if known else None
    service = Service.load(Path(known["log"]).parent) if known else None
    if known is None or process is None or service is None or service.process != process:
        raise serving.not_served("no server is recorded")
    if not process.alive():
        raise serving.not_served(f"its server, process {process.pid}, has ended")
    serving.require_healthy(known["endpoint"])
    spec = service.spec
    return Served(
        endpoint=known["endpoint"],
        model=known["model"],
        folder=Path(spec["argv"][2]),
        process=process,
        key=serving.api_key(known.get("api_key_file")),
        about={
            "book": book["name"],
            "digests": spec.get("digests", {}),
            "profile": known.get("profile"),
            "program": spec["argv"][0],
            "flags": spec["argv"][3:],
            "env": spec["env"],
            "kv_cache_tokens": known.get("kv_cache_tokens"),
            "backends": known.get("backends", []),
        },
    )
