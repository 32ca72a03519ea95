"""The local hub with a fault layer in front, and what the tests need to drive it."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from runbook.planning.context import StepContext, namespace
from runbook.steps.common.hub.transfer import Tuning
from runbook.steps.publish.handler import Handler
from runbook.steps.publish.local_hub import HOST
from runbook.steps.publish.repository import File, Repository
from runbook.steps.publish.server import Server
from runbook.steps.weights.models import Inputs

PIECE = 8 << 10
SCALE = 1024
"""Test files are smaller than real ones by this factor, and so are segments and marks."""
SILENCE = 1.0
TUNING = Tuning(
    segment=64 << 10,
    mark=32 << 10,
    small=1 << 10,
    timeout=5.0,
    first_wait=0.001,
    longest_wait=0.01,
    poll=0.005,
)


@dataclass(frozen=True)
class Fault:
    """One misdeed. `where`: content, resolve or api, the kind of request that it is for.

    `at` is a share of the answer: the point where a connection is cut or a byte is flipped.
    """

    kind: str
    where: str = "content"
    at: float = 0.5
    retry_after: str = ""


@dataclass
class Faults:
    """What goes wrong, in order; and what was served."""

    pending: deque[Fault] = field(default_factory=deque)
    always: dict[str, Fault] = field(default_factory=dict)
    """By `where`: for every request."""
    happened: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    headers: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    """Bytes of content handed to sockets."""
    pause: float = 0.0
    """Seconds between pieces: keeps what is in flight small."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, where: str) -> Fault | None:
        with self.lock:
            self.requests[where] += 1
            fault = self.always.get(where)
            if fault is None and self.pending and self.pending[0].where == where:
                fault = self.pending.popleft()
            if fault is not None:
                self.happened[fault.kind] += 1
            return fault

    def count(self, sent: int) -> None:
        with self.lock:
            self.sent += sent


class FaultyHandler(Handler):
    """Answers as the hub does, except when a fault is due."""

    server: FaultyServer
    fault: Fault | None = None

    def do_GET(self) -> None:
        where = self._where()
        faults = self.server.faults
        with faults.lock:
            faults.headers.append((where, {k.title(): v for k, v in self.headers.items()}))
        self.fault = fault = faults.next(where)
        if fault is None or fault.kind in ("cut", "reset", "flip", "slow", "drip", "changed"):
            super().do_GET()
        elif fault.kind == "loop":
            self._send(302, {"Location": self.path})
        elif fault.kind in ("whole", "half"):
            del self.headers["Range"]
            super().do_GET()
        elif fault.kind == "silent":
            time.sleep(SILENCE)
            self.close_connection = True
        elif fault.kind == "html":
            self._send(200, {"Content-Type": "text/html", "Content-Length": "6"})
            self.wfile.write(b"<html>")
        elif fault.kind == "length":
            self._wrong_length()
        else:
            status = int(fault.kind)
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self._send(status, headers)

    do_HEAD = do_GET

    def _where(self) -> str:
        if self.server.content:
            return "content"
        return "api" if self.path.startswith("/api/") else "resolve"

    def _wrong_length(self) -> None:
        asked = self.headers.get("Range", "bytes=0-0").removeprefix("bytes=")
        start, _, last = asked.partition("-")
        length = int(last) - int(start) + 1
        self._send(
            206,
            {"Content-Range": f"bytes {asked}/{length + 7777777}", "Content-Length": str(length)},
        )
        self.wfile.write(bytes(length))

    def etag(self, file: File) -> str:
        if self.fault is not None and self.fault.kind == "changed":
            return '"another"'
        return super().etag(file)

    def send_content(self, file: File, start: int, stop: int) -> None:
        faults, fault = self.server.faults, self.fault
        data = bytearray((self.server.repository.folder / file.path).read_bytes()[start:stop])
        end = len(data)
        if fault is not None and data:
            point = min(int(len(data) * fault.at), len(data) - 1)
            if fault.kind == "flip":
                data[point] ^= 0x20
            elif fault.kind in ("cut", "reset", "half"):
                end = point
        kind = fault.kind if fault is not None else ""
        pause = {"slow": 0.01, "drip": 0.02}.get(kind, faults.pause)
        step = 1 if kind == "drip" else PIECE
        for position in range(0, end, step):
            piece = data[position : min(end, position + step)]
            self.wfile.write(piece)
            faults.count(len(piece))
            if pause:
                time.sleep(pause)
        if end < len(data):
            if kind == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
            self.close_connection = True


class FaultyServer(Server):
    faults: Faults
    name = HOST
    """The name that it goes by."""

    @property
    def url(self) -> str:
        return super().url.replace(HOST, self.name)

    def handle_error(self, request, client_address) -> None:
        """Cut connections are what the tests are about."""


class TestHub:
    """A hub and its content origin, with faults; `with` starts and stops them."""

    __test__ = False

    def __init__(self, repository: Repository, faults: Faults | None = None, **options) -> None:
        self.repository = repository
        self.faults = faults or Faults()
        self.servers = [
            FaultyServer(repository, handler=FaultyHandler, content=content, **options)
            for content in (False, True)
        ]
        for server in self.servers:
            server.faults = self.faults
        self.servers[0].content_url = self.servers[1].url

    @property
    def url(self) -> str:
        return self.servers[0].url

    def __enter__(self) -> TestHub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


def safetensors(names: list[str], size: int, seed: int) -> bytes:
    """A valid file with tensors of `size` random bytes each."""
    header = {
        name: {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + random.Random(seed).randbytes(size * len(names))


def write_repository(folder: Path, sizes: tuple[int, ...] = (200_000, 131_072, 300_001)) -> None:
    """A small model: shards with an index, a config, an empty file, a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for n, size in enumerate(sizes, 1):
        shard = f"model-{n:05}-of-{len(sizes):05}.safetensors"
        names = [f"layers.{n}.{part}.weight" for part in ("a", "b")]
        (folder / shard).write_bytes(safetensors(names, size // 2, seed=n))
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"architectures": ["Tiny"]}\n')
    (folder / "empty.txt").touch()
    (folder / "extra").mkdir(exist_ok=True)
    (folder / "extra" / "notes with space.md").write_text("a note\n")


def context(workspace: Path, hub: TestHub | str, *, lines: list[str] | None = None, **values):
    """A context for the step; what it logs is added to `lines`."""
    url = hub if isinstance(hub, str) else hub.url
    defaults = {"repo": "org/tiny", "endpoint": url, "workers": 3, "patience": 20.0}
    inputs = Inputs(**{**defaults, **values}).model_dump(mode="json")

    class Recorder(StepContext):
        def log(self, message: str) -> None:
            if lines is not None:
                lines.append(message)

    return Recorder("weights", namespace(inputs), workspace)


def tree(folder: Path) -> dict[str, bytes]:
    """All files by relative path, but for those that the step keeps for itself."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".runbook-" not in str(path.relative_to(folder))
    }
