"""A package index (PEP 503) on this machine that serves the wheels of a folder."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from urllib.parse import unquote

from runbook.steps.common.store import sha256_file


class Index(http.server.ThreadingHTTPServer):
    """`asked` are the paths that were asked for. `status`: given instead of any answer."""

    def __init__(self, folder: Path, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.status = folder, status
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = unquote(self.path).strip("/").rpartition("/")[2]
        file = self.server.folder / name
        if self.server.status != 200:
            self.send_error(self.server.status)
        elif file.suffix == ".whl" and file.is_file():
            self._give(file.read_bytes(), "application/octet-stream")
        elif wheels := list(self.server.folder.glob(f"{name.replace('-', '_')}-*.whl")):
            links = "".join(
                f'<a href="/{w.name}#sha256={sha256_file(w)}">{w.name}</a>\n' for w in wheels
            )
            self._give(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")
        else:
            self.send_error(404)

    def _give(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
