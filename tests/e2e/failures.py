"""Fourteen failures that a machine, its hub, its person or its server can have on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tests.e2e.machine import BOOT_ID, HERE, LOGS, Machine

Event = dict[str, Any]


class Failure:
    """`codes`: of the errors by one of which the agent must have learnt of it; empty if it need
    not. `words`: what must be said for the person to mend it; empty if nobody must."""

    codes: ClassVar[set[str]] = set()
    words: ClassVar[str] = ""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.met = False
        self.ended = False

    def begin(self) -> None:
        """Before the first call."""

    def seen(self, event: Event) -> None:
        """Something was written to the journal of a run."""

    def between(self, codes: set[str]) -> None:
        """Between two calls of the agent, which has met errors of these codes by now."""

    def hear(self, said: str) -> bool:
        """The person hears of an error; whether that one does something about it."""
        if self.ended or not self.words or not re.search(self.words, said):
            return False
        self.ended = True
        self.mend()
        return True

    def mend(self) -> None:
        """What the person does."""

    def end(self) -> None:
        """After all."""


class BusyPort(Failure):
    """A program of someone else listens on the server's port, and goes on to."""

    codes: ClassVar = {"port_in_use"}

    def begin(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.machine.port))
        self.met = True

    def end(self) -> None:
        self.listener.close()


class FullDisk(Failure):
    """The disk that the checkpoint is written to is too small for it."""

    codes: ClassVar = {"disk_full"}
    words: ClassVar = r"(?s)disk of .* is full.*make room"

    def begin(self) -> None:
        self.folder = self.machine.workspace / "hub"
        self.folder.mkdir(parents=True)
        self.machine.root("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", self.folder)
        self.met = True

    def mend(self) -> None:
        self.machine.root("mount", "-o", "remount,size=400m", self.folder)


class KilledCompiler(Failure):
    """The compiler is killed while kernels are compiled, at each of the step's tries."""

    codes: ClassVar = {"compiler_killed"}

    def begin(self) -> None:
        threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        while not self.ended:
            self.met |= self.machine.kill_all("cc1plus") > 0
            time.sleep(0.01)

    def between(self, codes: set[str]) -> None:
        self.ended |= self.met and bool(codes & self.codes)

    def end(self) -> None:
        self.ended = True


class ConflictingPatch(Failure):
    """Somebody has changed a patch, so that it does not apply; it is restored when that is told."""

    codes: ClassVar = {"patch_conflict"}
    words: ClassVar = r"cpu-top-k-top-p"

    def begin(self) -> None:
        self.patch = self.machine.patches / "0008-cpu-top-k-top-p.patch"
        self.kept = self.patch.read_text()
        lines = self.kept.splitlines(keepends=True)
        number = max(n for n, line in enumerate(lines) if line.startswith(" ") and line.strip())
        lines[number] = " " + "#" * (len(lines[number]) - 2) + "\n"
        self.patch.write_text("".join(lines))
        self.met = True

    def mend(self) -> None:
        self.patch.write_text(self.kept)


class Hub(Failure):
    """What stands before the rehearsal's hub, and does not always pass on what that says."""

    server: ThreadingHTTPServer

    def begin(self) -> None:
        failure = self

        class Front(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                failure.answer(self)

            do_HEAD = do_POST = do_GET

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """Who asks may go away: a download that has failed, a process that is killed."""

        self.server = Server(("127.0.0.1", 0), Front)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    refusals = 40
    """Requests that are answered by 429."""
    wrong = False
    stormed = False

    def answer(self, front: BaseHTTPRequestHandler) -> None:
        if self.refusals:
            self.refusals -= 1
            self.stormed = True
            front.send_response(429)
            front.send_header("Retry-After", "3600" if self.refusals % 2 else "1")
            front.send_header("Content-Length", "0")
            front.end_headers()
            return
        self._pass_on(front)

    def _pass_on(self, front: BaseHTTPRequestHandler) -> None:
        path, port = front.path, self._port()
        content = re.fullmatch(r"/through/(\d+)(/.*)", path)
        if content is not None:
            port, path = int(content[1]), content[2]
        body = front.rfile.read(int(front.headers.get("Content-Length") or 0))
        headers = {k: v for k, v in front.headers.items() if k.lower() != "host"}
        origin = HTTPConnection("127.0.0.1", port, timeout=30)
        origin.request(front.command, path, body, headers)
        answer = origin.getresponse()
        data = answer.read()
        front.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() == "location":
                value = re.sub(r"^http://127\.0\.0\.1:(\d+)", rf"{self.url}/through/\1", value)
            if name.lower() not in ("server", "date"):
                front.send_header(name, value)
        front.end_headers()
        if content is not None and len(data) > 1000 and not self.ended:
            self.wrong = True
            data = data[:-500] + bytes([data[-500] ^ 1]) + data[-499:]
        front.wfile.write(data)
        origin.close()

    def _port(self) -> int:
        record = json.loads((self.machine.state / "checkpoints" / "publish.json").read_text())
        return int(record["outputs"]["hub_endpoint"].rpartition(":")[2])

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Storm(Hub):
    """The hub answers 429 for a while, to some with a longer pause than anybody waits."""

    codes: ClassVar = {"hub_rate_limited"}

    def between(self, codes: set[str]) -> None:
        self.met = self.stormed
        if self.stormed and codes & self.codes:
            self.refusals = 0  # it is over by now


class WrongBytes(Failure):
    """A byte of the weights is not what the hub's digest says, until the fault is told."""

    codes: ClassVar = {"digest_mismatch"}

    def __init__(self, machine: Machine, hub: Hub) -> None:
        super().__init__(machine)
        self.hub = hub

    def between(self, codes: set[str]) -> None:
        self.met = self.hub.wrong
        if codes & self.codes:
            self.hub.ended = True


class DeadSupervisor(Failure):
    """The run's own process is killed in the middle of the build, whose process lives on."""

    codes: ClassVar = {"interrupted"}

    def seen(self, event: Event) -> None:
        if event["type"] == "attempt.progress" and event["step"] == "build" and not self.met:
            holder = json.loads((self.machine.state / "lock").read_text())
            os.kill(holder["pid"], signal.SIGKILL)
            self.met = True


class MissingApproval(Failure):
    """A step asks before it downloads."""

    codes: ClassVar = {"approval"}

    def begin(self) -> None:
        self.met = True


class Starts(Failure):
    """One start of the server that goes otherwise."""

    entry: ClassVar[dict[str, Any]]

    def begin(self) -> None:
        path = self.machine.starts
        entries = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps([*entries, self.entry]))
        self.after = len(entries)
        """Starts before it."""

    def between(self, codes: set[str]) -> None:
        left = len(json.loads(self.machine.starts.read_text()))
        self.met |= self.total - left > self.after

    total = 0
    """Entries of all starts together."""


class OutOfMemory(Starts):
    """The card's memory does not do."""

    codes: ClassVar = {"cuda_out_of_memory", "out_of_memory_at_load"}
    entry: ClassVar = {"log": str(HERE / "starts" / "cuda_out_of_memory.log"), "then": "exits"}


class Hang(Starts):
    """The server is silent for ever, and nothing of it computes."""

    codes: ClassVar = {"ranks_deadlocked"}
    entry: ClassVar = {
        "log": str(HERE.parent / "steps" / "serve" / "logs" / "gpu.log"),
        "then": "hangs",
    }


class SlowStart(Starts):
    """A start that compiles for long, and says what is often taken for a hang."""

    entry: ClassVar = {
        "log": str(LOGS / "27-slow-compile-not-a-hang.log"),
        "pause": 3,
        "last_words": str(LOGS / "26-start-crash-after-ready.log"),
    }


class DeathAfterReady(Failure):
    """The server dies while it is asked for the first time."""

    codes: ClassVar = {"smoke_failed"}

    def seen(self, event: Event) -> None:
        if event["type"] == "attempt.started" and event["step"] == "smoke" and not self.met:
            self.machine.dies_now.touch()
            self.met = True


class Reboot(Failure):
    """The power fails: no process is left, and the machine has another boot id afterwards."""

    codes: ClassVar = {"interrupted"}
    smoked = 0

    def seen(self, event: Event) -> None:
        if event["type"] == "attempt.started" and event["step"] == "smoke" and not self.met:
            self.smoked += 1
            if self.smoked == 2:
                while self.machine.kill_all():
                    pass
                if self.machine.holder is not None:
                    other = self.machine.home / "boot_id"
                    other.write_text("0b007ed0-1e22-41a9-b9ee-55d6d11e0635\n")
                    self.machine.root("mount", "--bind", other, BOOT_ID)
                self.met = True


class DamagedState(Failure):
    """Records are cut off, or hold something else, as after a fault of a disk."""

    def between(self, codes: set[str]) -> None:
        if self.met or not codes & OutOfMemory.codes:
            return
        self.met = True
        state = self.machine.state
        zeros, half, lost, *_ = sorted((state / "checkpoints").glob("*.json"))
        zeros.write_bytes(bytes(400))
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
        lost.unlink()
        with (state / "latest" / "journal.ndjson").open("ab") as journal:
            journal.write(b'{"seq": 9')
        shutil.rmtree(state / "stamps", ignore_errors=True)
