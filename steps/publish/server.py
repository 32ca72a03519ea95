"""A small server that speaks the hub's protocol, for one repository, on the loopback only.

It answers what huggingface_hub's client asks: model info, tree (paged), paths-info, and `resolve`
with HEAD and GET. As on the hub, a large file is a redirect to a content location of another
origin (a second port), which knows nothing of tokens and answers ranges. Sources:
https://huggingface.co/docs/hub/api, the client's own code, RFC 9110 sections 13 and 14 for
conditions and ranges.

    python -m runbook.steps.publish.server --manifest FILE --state FILE --port N
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from runbook.files import write_json
from runbook.process import Identity
from runbook.steps.publish import HOST
from runbook.steps.publish.repository import File, Repository

PAGE = 1000
API = "/api/models/"
CONTENT = "/content/"


class Refusal(Exception):
    """An error answer with the code that the hub's client turns into its exceptions."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Handler(BaseHTTPRequestHandler):
    """Requests of both origins; `server.content` says which one it is."""

    server: Server
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

    def _answer(self) -> None:
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            path, query = unquote(url.path), parse_qs(url.query)
            if self.server.content:
                self._content(path)
            elif path.startswith(API):
                self._authorize()
                self._api(path.removeprefix(API), query, body)
            else:
                self._authorize()
                self._resolve(path.lstrip("/"))
        except Refusal as refusal:
            self._refuse(refusal)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # Who may read

    def _authorize(self) -> None:
        repository, token = self.server.repository, self.server.token
        if self.headers.get("Authorization") == f"Bearer {token}" and token:
            return
        if self.headers.get("Authorization") and token:
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header"
            )
        # As on the hub, a private repository is not told from one that does not exist, and a
        # gated one is listed for everyone.
        if repository.access == "private":
            raise Refusal(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")

    def _authorize_content(self) -> None:
        repository = self.server.repository
        if repository.access == "gated" and not self.headers.get("Authorization"):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "GatedRepo",
                f"Access to model {repository.name} is restricted. You must have access to it and"
                f" be authenticated to access it. Please log in.",
            )

    # Listing

    def _api(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        repository = self.server.repository
        name = "/".join(path.split("/")[: repository.name.count("/") + 1])
        if name != repository.name:
            raise Refusal(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        verb, _, rest = path.removeprefix(name).lstrip("/").partition("/")
        if verb == "":
            self._send_json(self._info())
        elif verb == "revision":
            self._check_revision(rest)
            self._send_json(self._info())
        elif verb == "auth-check":
            self._authorize_content()
            self._send_json({})
        elif verb == "tree":
            revision, _, folder = rest.partition("/")
            self._check_revision(revision)
            self._tree(folder.strip("/"), query)
        elif verb == "paths-info":
            self._check_revision(rest)
            self._send_json(self._paths_info(body))
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, "", f"Nothing is served at {self.path}")

    def _check_revision(self, revision: str) -> None:
        if revision not in ("main", self.server.repository.revision):
            raise Refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _info(self) -> dict[str, Any]:
        repository = self.server.repository
        return {
            "_id": repository.revision[:24],
            "id": repository.name,
            "modelId": repository.name,
            "author": repository.name.partition("/")[0],
            "sha": repository.revision,
            "private": repository.access == "private",
            "gated": "manual" if repository.access == "gated" else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": ["safetensors"],
            "siblings": [{"rfilename": f.path} for f in repository.files],
        }

    def _tree(self, folder: str, query: dict[str, list[str]]) -> None:
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        repository = self.server.repository
        found = [
            *({"type": "directory", "oid": oid, "size": 0, "path": path}
              for path, oid in repository.folders.items() if path),
            *(f.listing() for f in repository.files),
        ]  # fmt: skip
        entries = sorted(
            (
                entry
                for entry in found
                if entry["path"].startswith(prefix)
                and (recursive or "/" not in entry["path"].removeprefix(prefix))
            ),
            key=lambda entry: str(entry["path"]),
        )
        if folder and not entries:
            raise Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
        limit = min(int(query.get("limit", [PAGE])[0]), self.server.page)
        start = int(query.get("cursor", [0])[0])
        headers = {}
        if start + limit < len(entries):
            target = urlsplit(self.path).path
            more = f"recursive={recursive}&limit={limit}&cursor={start + limit}"
            headers["Link"] = f'<{self.server.url}{target}?{more}>; rel="next"'
        self._send_json(entries[start : start + limit], headers)

    def _paths_info(self, body: bytes) -> list[dict[str, Any]]:
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(body).get("paths", [])
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        wanted = [self.server.repository.find(path) for path in paths]
        return [f.listing() for f in wanted if f is not None]

    # Content

    def _resolve(self, path: str) -> None:
        repository = self.server.repository
        match = re.fullmatch(rf"{re.escape(repository.name)}/resolve/([^/]+)/(.+)", path)
        if match is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        self._authorize_content()
        self._check_revision(match[1])
        file = repository.find(match[2])
        if file is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        if file.sha256 is None:
            self._send_file(file, {"X-Repo-Commit": repository.revision})
            return
        self._send(
            HTTPStatus.FOUND,
            {
                "Location": f"{self.server.content_url}{CONTENT}{file.sha256}/{quote(file.path)}",
                "X-Repo-Commit": repository.revision,
                "X-Linked-Size": str(file.size),
                "X-Linked-ETag": f'"{file.sha256}"',
                "Accept-Ranges": "bytes",
            },
        )

    def _content(self, path: str) -> None:
        sha256 = path.removeprefix(CONTENT).partition("/")[0]
        file = self.server.repository.find_large(sha256)
        if file is None or not path.startswith(CONTENT):
            raise Refusal(HTTPStatus.NOT_FOUND, "", "No such content")
        self._send_file(file, {})

    def _send_file(self, file: File, headers: dict[str, str]) -> None:
        etag = self.etag(file)
        headers = {
            **headers,
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        condition = self.headers.get("If-Range")
        asked = self.headers.get("Range") if condition in (None, etag) else None
        span = parse_range(asked, file.size)
        if span is None:
            self._send(HTTPStatus.OK, {**headers, "Content-Length": str(file.size)})
            start, stop = 0, file.size
        elif span[0] >= span[1]:
            headers["Content-Range"] = f"bytes */{file.size}"
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
            return
        else:
            start, stop = span
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
            headers["Content-Length"] = str(stop - start)
            self._send(HTTPStatus.PARTIAL_CONTENT, headers)
        if self.command != "HEAD":
            self.send_content(file, start, stop)

    def etag(self, file: File) -> str:
        """The validator of a file's content, quoted."""
        return f'"{file.etag}"'

    def send_content(self, file: File, start: int, stop: int) -> None:
        """The bytes from `start` up to `stop`, by sendfile(2)."""
        with (self.server.repository.folder / file.path).open("rb") as source:
            sent = self.connection.sendfile(source, start, stop - start)
        if sent != stop - start:
            raise ConnectionResetError(f"{file.path} is shorter than {stop} bytes")

    # Answers

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
        headers["X-Error-Message"] = refusal.message
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


class Server(ThreadingHTTPServer):
    """One origin. `start` gives the pair that stands for a hub and its content network."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        repository: Repository,
        port: int = 0,
        *,
        token: str = "",
        page: int = PAGE,
        handler: type[Handler] = Handler,
        content: bool = False,
        verbose: bool = False,
    ) -> None:
        self.repository = repository
        self.token = token
        self.page = page
        self.content = content
        self.verbose = verbose
        self.content_url = ""
        super().__init__((HOST, port), handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, socket.timeout)):
            super().handle_error(request, client_address)


def start(repository: Repository, port: int = 0, **options: Any) -> tuple[Server, Server]:
    """Start both origins in threads of this process; returns (hub, content)."""
    hub = Server(repository, port, **options)
    content = Server(repository, 0, content=True, **options)
    hub.content_url = content.url
    for server in (hub, content):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return hub, content


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """A Range header as (start, stop), stop excluded; empty if it cannot be satisfied; None if
    there is none, or one that a server may ignore (several ranges, another unit)."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        return max(0, size - int(match[2])), size
    stop = int(match[2]) + 1 if match[2] else size
    return int(match[1]), min(stop, size)


def write_state(path: Path, manifest: Path, hub: Server) -> None:
    """Say who serves what and where; written once the sockets listen."""
    process = Identity.of(os.getpid())
    assert process is not None
    state = {
        "manifest": str(manifest),
        "port": hub.server_address[1],
        "repo": hub.repository.name,
        "revision": hub.repository.revision,
        "process": process.dump(),
    }
    write_json(path, state)


def main() -> None:
    parser = argparse.ArgumentParser(prog="runbook.steps.publish.server")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    try:
        hub, _ = start(Repository.load(options.manifest), options.port, verbose=True)
    except OSError as error:
        sys.exit(f"cannot listen on {HOST}:{options.port}: {error.strerror}")
    write_state(options.state, options.manifest, hub)
    print(f"serving {hub.repository.name} at {hub.url}", file=sys.stderr, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)


if __name__ == "__main__":
    main()
