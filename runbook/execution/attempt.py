"""One execution of one step, seen from the supervisor: start, listen, stop, and leave nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runbook.errors import error_dict
from runbook.execution.attempts import tail
from runbook.planning.look import Look
from runbook.process import MARK, Identity, attempt_mark, of_attempt, session_members, stop
from runbook.remedy import Remedy, load
from runbook.state.workspace import Workspace

GRACE = 10.0
AT_ONCE = 1 << 20
"""Bytes that are heard of one attempt before others are."""
DIED = Remedy("run", text="{command} continues; if it dies again, see its log and `dmesg`")


class Attempt:
    """A running worker. `messages` gives what it has told since the last call."""

    def __init__(
        self,
        look: Look,
        number: int,
        run: Path,
        workspace: Workspace,
        lock: int,
        action: str = "apply",
        forced: bool = False,
    ) -> None:
        assert look.context is not None and look.inputs is not None
        step = look.step
        self.look = look
        self.step: str = step["id"]
        self.number = number
        suffix = "" if action == "apply" else f".{action}"
        self.log = run / f"{self.step}{suffix}.{number}.log"
        self.mark = attempt_mark(workspace.state, f"{run.name}/{self.step}{suffix}.{number}")
        self.started = time.monotonic()
        self.result: dict[str, Any] | None = None
        self.status: int | None = None
        self.unheard: list[Mapping[str, Any]] = []
        self._buffer = b""
        self._log_size = 0
        self._sign_of_life = self.started
        context = look.context
        spec = {
            "action": action,
            "forced": forced,
            "step": self.step,
            "uses": step["uses"],
            "folder": step["folder"],
            "inputs": look.inputs,
            "workspace": str(workspace.root),
            "cache": str(context.cache),
            "secrets": sorted(context.secrets),
            "locks": [str(place) for place in context.locks],
            "log": str(self.log),
        }
        self.events, tell = os.pipe()
        try:
            with open(self.log, "ab") as early:  # what the worker prints before it has its own
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "runbook.execution.worker", str(tell)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=early,
                    env={**os.environ, MARK: self.mark},
                    pass_fds=(tell, lock),
                    start_new_session=True,
                )
        finally:
            os.close(tell)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(spec).encode())
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; its exit tells
        os.set_blocking(self.events, False)
        self.identity = Identity.of(self._process.pid)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def messages(self, most: float = AT_ONCE) -> tuple[list[Mapping[str, Any]], bool]:
        """What the worker has told, of more than `most` bytes the first, and whether it has
        ended."""
        ended = False
        taken = 0
        while taken < most:
            try:
                chunk = os.read(self.events, 65536)
            except BlockingIOError:
                break
            if not chunk:
                ended = True
                break
            self._buffer += chunk
            taken += len(chunk)
        *lines, self._buffer = self._buffer.split(b"\n")
        found = []
        for line in lines:
            message = json.loads(line)
            self._sign_of_life = time.monotonic()
            if message["type"] in ("result", "failure"):
                self.result = message
            elif message["type"] == "exit":
                self.status = message["status"]
            else:
                found.append(message)
        return found, ended

    def silent_for(self) -> float:
        """Seconds since it last printed or told something."""
        try:
            size = self.log.stat().st_size
        except FileNotFoundError:
            size = 0
        if size != self._log_size:
            self._log_size = size
            self._sign_of_life = time.monotonic()
        return time.monotonic() - self._sign_of_life

    def processes(self) -> list[int]:
        return sorted({*session_members(self._process.pid), *of_attempt(self.mark)})

    def stop(self, grace: float = GRACE, hurry: Callable[[], bool] = lambda: False) -> list[int]:
        """End it and everything it started, without grace once `hurry` says so. Returns what could
        not be ended."""
        left = stop(self.processes, grace, hurry)
        self._process.wait()
        self.unheard, _ = self.messages(math.inf)
        return left

    def finish(self) -> list[int]:
        """After its end: sweep up what it left running."""
        self._process.wait()
        left = stop(self.processes, 2.0)
        os.close(self.events)
        return left

    def failure(self) -> dict[str, Any]:
        """The `error` object of an attempt that did not succeed."""
        result = self.result
        if result is not None and result["type"] == "failure":
            fields = ("code", "message", "cause", "remedy", "retryable", "where")
            given = {key: result[key] for key in fields if key in result}
            given["remedy"] = load(given.get("remedy", ""))
            return error_dict(**given, log=str(self.log))
        if self.status is not None and self.status < 0:
            number = -self.status
        else:
            number = -self._process.returncode if self._process.returncode < 0 else 0
        killed = f"signal {number}" if number else f"exit status {self._process.returncode}"
        killer = "the kernel's out-of-memory killer sends signal 9" if number == 9 else ""
        return error_dict(
            "worker_died",
            f"the step's process died with {killed} before it could say why",
            cause=tail(self.log) or killer,
            remedy=DIED,
            retryable=True,
            log=str(self.log),
        )
