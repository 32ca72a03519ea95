"""A program that a step leaves running after its attempt has ended.

One folder holds one service: `spec.json` says what is to be started, `state.json` what was
started and as which process, `server.log` what it wrote. The program is started by become.py.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runbook.files import read_json, write_json
from runbook.process import Identity, boot_id, session_members, stop_session
from runbook.protocol import StepFailure
from runbook.remedy import Remedy
from runbook.steps.common import remote_code

EXIT_LOCKED = 75
"""EX_TEMPFAIL of sysexits.h: another process of this service still lives."""
WITHHELD = ("RUNBOOK_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY")
"""Variables, by prefix, that a service never inherits: marks of the attempt, secrets that only
downloads need, and a key that clients of another server use."""
LAUNCH_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Service:
    """What `state.json` says. `found` is what its step learnt of it while it became ready."""

    folder: Path
    process: Identity
    spec: dict[str, Any]
    ready: bool
    found: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Service | None:
        """The service last started from this folder, dead or alive; None if there is no record."""
        data = read_json(folder / "state.json")
        process = Identity.load(data.get("process")) if isinstance(data, dict) else None
        if process is None:
            return None
        return cls(folder, process, data["spec"], bool(data["ready"]), dict(data["found"]))

    def save(self) -> None:
        value = {
            "process": self.process.dump(),
            "spec": self.spec,
            "ready": self.ready,
            "found": self.found,
        }
        write_json(self.folder / "state.json", value)

    def mark_ready(self, found: dict[str, Any]) -> Service:
        ready = replace(self, ready=True, found=found)
        ready.save()
        return ready

    def alive(self) -> bool:
        return self.process.alive()

    def members(self) -> list[int]:
        """The living processes of its session, its leader dead or alive.

        The kernel gives a pid to no one while it still names a session, so if another process
        has the leader's pid, the session has ended.
        """
        if self.process.boot_id != boot_id():
            return []
        leader = Identity.of(self.process.pid)
        if leader is not None and leader != self.process:
            return []
        return session_members(self.process.pid)

    @property
    def log(self) -> Path:
        return log_path(self.folder)

    def stop(self, grace: float) -> None:
        """SIGINT to the leader and `grace` seconds; then SIGTERM and SIGKILL to what is left.

        Raises StepFailure if a process outlives even that. The record is removed last.
        """
        self.process.signal(signal.SIGINT)
        deadline = time.monotonic() + grace
        while self.members() and self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.members():
            left = stop_session(self.process.pid, grace=min(grace, 5.0))
            if left:
                raise StepFailure(
                    f"processes {', '.join(map(str, left))} of the server do not end",
                    code="server_not_stopped",
                    cause="they outlived SIGKILL: they wait in the kernel, often for a GPU",
                    remedy=Remedy("run", text="restart the machine, then {command}"),
                )
        (self.folder / "state.json").unlink(missing_ok=True)


def log_path(folder: Path) -> Path:
    return folder / "server.log"


def write_spec(folder: Path, spec: dict[str, Any]) -> None:
    """`spec`: {argv, env, path, ...}; `env` is laid over the environment, `path` before PATH. It
    may have `base_env`, over which `env` is laid too, and `secret_env`: {variable: file}, values
    that are in no record. `trusted_code` has the digests of code of the model that it may run:
    raises PreconditionNotMet if it would run other."""
    remote_code.require(spec)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spec.json", spec)


def launcher(folder: Path) -> list[str]:
    """The command that becomes the service described in the folder."""
    return [sys.executable, "-m", "runbook.steps.common.become", str(folder)]


def inherited_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(WITHHELD)}


def start(folder: Path, spec: dict[str, Any]) -> Service:
    """Start a service in a session of its own; return once it is recorded. If one of an earlier
    attempt lives still, it is that one: its `spec` tells whether it is the same."""
    import subprocess

    write_spec(folder, spec)
    child = subprocess.Popen(
        launcher(folder),
        env=inherited_environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    return await_record(folder, child.pid, child.poll)


def await_record(folder: Path, pid: int | None, ended: Any) -> Service:
    """Wait until `state.json` names a process (`pid`, if known) of this start."""
    deadline = time.monotonic() + LAUNCH_SECONDS
    while time.monotonic() < deadline:
        status = ended()
        service = Service.load(folder)
        if service is not None and service.process.pid == pid:
            return service
        if service is not None and service.alive() and (pid is None or status == EXIT_LOCKED):
            return service  # an earlier attempt, killed since, was quicker
        if status is not None and status != EXIT_LOCKED:
            break
        time.sleep(0.01)
    raise StepFailure(
        "the server's process could not be started",
        code="server_not_started",
        cause="processes of an earlier server still hold its lock"
        if ended() == EXIT_LOCKED
        else f"the launcher ended with status {ended()} before it had recorded its process",
        remedy=Remedy("destroy", ("{step}",), text="{command}, then run again"),
        retryable=True,
        where=str(log_path(folder)),
    )
