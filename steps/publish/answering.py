"""Requests and answers of the local hub: what is read is looked at, what goes wrong is said."""

from __future__ import annotations

import json
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

MOST_BODY = 1 << 20
"""Bytes of a request: no client of the hub asks for more paths at once."""
Query = dict[str, list[str]]


class Refusal(Exception):
    """An error answer with the code that the hub's client turns into its exceptions."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def malformed(what: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "", f"{what} is malformed")


class Answering(BaseHTTPRequestHandler):
    """Without the protocol of the hub, which is `respond`."""

    server: Any
    """A `Server` of server.py."""
    protocol_version = "HTTP/1.1"
    server_version = "runbook-hub/1"
    timeout: ClassVar[float] = 300
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def respond(self, path: str, query: Query, body: bytes) -> None:
        """Answer a request, or raise Refusal."""
        raise NotImplementedError

    def _answer(self) -> None:
        try:
            body = self._body()
            try:
                url = urlsplit(self.path)
                path = unquote(url.path, errors="strict")
                query = parse_qs(url.query, errors="strict")
            except ValueError as error:
                raise malformed("the address") from error
            if any(character < " " for character in path):
                raise malformed("the address")
            self.respond(path, query, body)
        except Refusal as refusal:
            self._refuse(refusal)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _body(self) -> bytes:
        given = self.headers.get("Content-Length") or "0"
        if not given.isascii() or not given.isdigit() or self.headers.get("Transfer-Encoding"):
            self.close_connection = True  # where the next request begins is not known
            raise malformed("the length of the request")
        if len(given) > 9 or int(given) > MOST_BODY:
            self.close_connection = True
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "", "the request is too large")
        return self.rfile.read(int(given))

    def _send_json(self, data: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        self._send(
            HTTPStatus.OK,
            {
                **(headers or {}),
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
            },
        )
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, refusal: Refusal) -> None:
        body = json.dumps({"error": refusal.message}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        headers["X-Error-Message"] = ascii(refusal.message)[1:-1]  # a header has one line
        self._send(refusal.status, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, status: int, headers: dict[str, str]) -> None:
        headers.setdefault("Content-Length", "0")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        if self.server.verbose:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            print(now, self.address_string(), format % args, file=sys.stderr, flush=True)
