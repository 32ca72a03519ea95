"""A machine on which the rehearsal meets failures: a place for it, and what goes wrong there.

Where namespaces may be made, the program runs in one of mounts: so a disk can be small and the
machine can have another boot id, as root and without.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.agent import shell

HERE = Path(__file__).parent
LOGS = HERE.parent / "steps" / "common" / "diagnoses" / "logs"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
SETTLED = 30.0


class Machine:
    """Its workspace is `home/workspace`, and its book `home/runbook.yaml`."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.workspace = home / "workspace"
        self.port = port
        self.state = self.workspace / ".runbook"
        self.starts = home / "starts.json"
        self.dies_now = home / "dies-now"
        self.patches = home / "patches" / "0.32.0-cpu"
        self.holder = _namespace()
        program = Path(sys.executable).with_name("runbook")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RUNBOOK_", "XDG_"))},
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "RUNBOOK_WORKSPACE": str(self.workspace),
            "AI_AGENT": "scripted",
        }
        if cache := os.environ.get("RUNBOOK_CACHE"):
            self.environment["RUNBOOK_CACHE"] = cache
        shutil.copytree(files("runbook.steps") / "vllm" / "patches" / "0.32.0-cpu", self.patches)

    def write_book(self, hub: str) -> None:
        """The rehearsal, with an approval, a hub behind `hub`, patches that can be spoilt, and a
        server whose starts can be."""
        book = yaml.safe_load((files("runbook.books") / "rehearsal.yaml").read_text())
        book["inputs"]["port"]["default"] = self.port
        step = {entry["id"]: entry for entry in book["steps"]}
        step["build"]["with"]["series"] = str(self.patches)
        step["weights"]["with"]["endpoint"] = hub
        step["weights"]["approve"] = (
            "Download {{ check.work.bytes | filesize if check.work.bytes else 'the weights' }}?"
        )
        # However busy the machine is: what hangs is told by what does not happen.
        step["serve"].update(timeout="3h", stall="1h")
        step["serve"]["with"]["start_timeout"] = 7200
        failing = {
            "PYTHONPATH": str(HERE / "starts"),
            "STARTS_TO_COME": str(self.starts),
            "DIES_NOW": str(self.dies_now),
        }
        step["serve"]["with"]["env"].append(failing)
        (self.home / "runbook.yaml").write_text(yaml.safe_dump(book, sort_keys=False))

    def command(self, line: str) -> list[str]:
        return [*self._inside(), "/bin/sh", "-c", f"cd {shlex.quote(str(self.home))} && {line}"]

    def shell(self, line: str) -> tuple[int, str]:
        return shell(self.command(line), self.environment, self.home)

    def root(self, *argv: str | Path) -> None:
        """A command in the namespace, where it may mount."""
        line = shlex.join(map(str, argv))
        code, said = self.shell(line)
        assert code == 0, said

    def _inside(self) -> list[str]:
        if self.holder is None:
            return []
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.holder.pid), *user, "--mount"]

    def processes(self, name: str = "") -> Iterator[int]:
        """Everything that runs for the workspace, or those of one program: by its environment, its
        arguments or its folder, since servers are given an environment of their own."""
        mark = os.fsencode(self.home)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if name and (entry / "comm").read_text().strip() != name:
                    continue
                words = ((entry / part).read_bytes() for part in ("environ", "cmdline"))
                here = os.fsencode(os.readlink(entry / "cwd")).startswith(mark)
                if int(entry.name) != os.getpid() and (here or any(mark in w for w in words)):
                    yield int(entry.name)
            except OSError:
                continue  # it has ended, or is another user's

    def kill_all(self, name: str = "") -> int:
        """SIGKILL to all processes, or to those of one program; how many."""
        count = 0
        for pid in self.processes(name):
            try:
                os.kill(pid, signal.SIGKILL)
                count += 1
            except ProcessLookupError:
                continue
        return count

    def events(self) -> list[dict[str, Any]]:
        """Of all runs, oldest first."""
        found = []
        for run in sorted((self.state / "runs").glob("*")):
            try:
                text = (run / "journal.ndjson").read_text()
            except FileNotFoundError:
                continue
            for line in text.splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue  # it is being written, or is torn
        return found

    def close(self) -> None:
        self.shell("runbook cancel --json")
        self.shell("runbook destroy --yes --json")
        deadline = time.monotonic() + SETTLED
        while self.kill_all() and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()


def _namespace() -> subprocess.Popen[bytes] | None:
    """A process that keeps a namespace of mounts in which one may mount; None if none is to be
    had."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return None
    options = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    try_it = "mount -t tmpfs -o size=1m tmpfs /mnt && umount /mnt"
    tried = subprocess.run(["unshare", *options, "sh", "-c", try_it], capture_output=True)
    if tried.returncode != 0:
        return None
    ready = ["unshare", *options, "sh", "-c", "echo; exec sleep infinity"]
    holder = subprocess.Popen(ready, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


class Watch(threading.Thread):
    """Calls `seen` with each event of the runs, as it is written."""

    def __init__(self, machine: Machine, seen: Any) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.seen = seen
        self.ended = threading.Event()

    def run(self) -> None:
        told: set[tuple[str, int]] = set()
        while not self.ended.wait(0.1):
            for event in self.machine.events():
                key = (event["time"], event["seq"])
                if key not in told:
                    told.add(key)
                    self.seen(event)
