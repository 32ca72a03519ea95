"""A conda channel made by hand and served over HTTP, with faults on demand."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from conda_package_streaming.create import conda_builder

PLACEHOLDER = "/opt/anaconda1anaconda2anaconda3" + "_" * 40


@dataclass(frozen=True)
class Package:
    """A package to build: its files by path; text with PLACEHOLDER is rewritten on installing."""

    name: str
    version: str
    files: dict[str, bytes]
    depends: tuple[str, ...] = ()
    subdir: str = "linux-64"
    links: dict[str, str] = field(default_factory=dict)
    build: str = "h0_0"

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.build}.conda"

    def write(self, channel: Path) -> Path:
        folder = channel / self.subdir
        folder.mkdir(parents=True, exist_ok=True)
        paths = [
            {
                "_path": path,
                "path_type": "hardlink",
                "sha256": hashlib.sha256(data).hexdigest(),
                "size_in_bytes": len(data),
                **(
                    {"file_mode": "text", "prefix_placeholder": PLACEHOLDER}
                    if PLACEHOLDER.encode() in data
                    else {}
                ),
            }
            for path, data in self.files.items()
        ]
        paths += [
            {"_path": path, "path_type": "softlink", "sha256": hashlib.sha256(b"").hexdigest()}
            for path in self.links
        ]
        index = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": list(self.depends),
            "subdir": self.subdir,
            **({"noarch": "generic"} if self.subdir == "noarch" else {}),
        }
        stem = self.file_name.removesuffix(".conda")
        with conda_builder(stem, str(folder)) as tar:
            for path, data in self.files.items():
                add(tar, path, data)
            for path, target in self.links.items():
                member = tarfile.TarInfo(path)
                member.type, member.linkname = tarfile.SYMTYPE, target
                tar.addfile(member)
            add(tar, "info/index.json", json.dumps(index).encode())
            add(tar, "info/paths.json", json.dumps({"paths": paths, "paths_version": 1}).encode())
            add(tar, "info/files", "\n".join([*self.files, *self.links]).encode())
        return folder / self.file_name


def add(tar: tarfile.TarFile, path: str, data: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(data), 0o755 if path.startswith("bin/") else 0o644
    tar.addfile(member, io.BytesIO(data))


def build_channel(folder: Path, packages: Sequence[Package]) -> None:
    """Write the packages and index them, with repodata for noarch too."""
    from rattler.index import index_fs

    for subdir in ("linux-64", "noarch"):
        (folder / subdir).mkdir(parents=True, exist_ok=True)
    for package in packages:
        package.write(folder)
    asyncio.run(index_fs(folder))


def lock_for(packages: Sequence[Package], channel: Path, base: str) -> dict[str, Any]:
    """A conda-lock document for built packages, with URLs below `base`/<channel name>."""
    entries = []
    for package in packages:
        data = (channel / package.subdir / package.file_name).read_bytes()
        entries.append(
            {
                "name": package.name,
                "version": package.version,
                "manager": "conda",
                "platform": "linux-64",
                "dependencies": {
                    name: constraint
                    for name, _, constraint in (depend.partition(" ") for depend in package.depends)
                },
                "url": f"{base}/{channel.name}/{package.subdir}/{package.file_name}",
                "hash": {
                    "md5": hashlib.md5(data).hexdigest(),
                    "sha256": hashlib.sha256(data).hexdigest(),
                },
                "category": "main",
                "optional": False,
            }
        )
    return {
        "version": 1,
        "metadata": {
            "content_hash": {"linux-64": "0" * 64},
            "channels": [{"url": f"{base}/{channel.name}", "used_env_vars": []}],
            "platforms": ["linux-64"],
            "sources": ["cuda.yml"],
        },
        "package": entries,
    }


def write_lock(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@dataclass
class Server:
    """Serves a folder; `faults` maps a file name to what goes wrong with it."""

    folder: Path
    base: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    bytes_per_second: float = 0
    requests: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve `folder` on 127.0.0.1 while the body runs.

    Faults: `truncate` (half of the bytes, then the connection ends), `flip` (one bit), `status
    500`, `status 404`, `html` (a proxy's page with status 200), `other` (a valid other file).
    """
    state = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            fault = state.faults.get(path.name, "")
            if fault.startswith("status"):
                self.send_error(int(fault.split()[1]))
                return
            if not path.is_file():
                self.send_error(404)
                return
            state.requests[path.name] += 1
            data = path.read_bytes()
            if fault == "flip":
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            elif fault == "html":
                data = b"<html><body>Please log in to the proxy.</body></html>"
            elif fault == "other":
                data = path.with_name(f"{path.name}.other").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault == "truncate":
                data = data[: len(data) // 2]
            for at in range(0, len(data), 65536):
                try:
                    self.wfile.write(data[at : at + 65536])
                except OSError:
                    return
                if state.bytes_per_second:
                    time.sleep(65536 / state.bytes_per_second)
            if fault != "truncate":
                state.completed[path.name] += 1

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
