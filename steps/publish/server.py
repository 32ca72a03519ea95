"""A small server that speaks the hub's protocol, for one repository, on the loopback only.

python -m runbook.steps.publish.server --manifest FILE --state FILE --port N
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from runbook.files import write_json
from runbook.process import Identity
from runbook.steps.publish.handler import PAGE, Handler
from runbook.steps.publish.local_hub import HOST
from runbook.steps.publish.repository import Repository


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
