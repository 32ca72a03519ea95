"""What keeps a server running after the attempt that started it: a session of its own, or the
user's systemd, which also restarts it when it crashes and brings it back after a reboot."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal, Protocol

from runbook.files import write_atomic
from runbook.protocol import StepFailure
from runbook.steps.common import service
from runbook.steps.common.service import Service

Kind = Literal["session", "systemd-user"]
SYSTEMCTL_SECONDS = 30
LINGER = Path("/var/lib/systemd/linger")


class Supervisor(Protocol):
    kind: Kind

    def start(self, folder: Path, spec: dict[str, Any]) -> Service:
        """Start the service; return once its process is recorded."""
        ...

    def stop(self, running: Service, grace: float) -> None:
        """Stop it and remove its record; nothing of it is left afterwards."""
        ...


class Session:
    """The server leads a session of its own, so it outlives the attempt and its terminal."""

    kind: Kind = "session"

    def start(self, folder: Path, spec: dict[str, Any]) -> Service:
        return service.start(folder, spec)

    def stop(self, running: Service, grace: float) -> None:
        running.stop(grace)


class SystemdUser:
    """The server is a unit of the user's service manager; the unit's name tells the workspace."""

    kind: Kind = "systemd-user"

    @staticmethod
    def reachable() -> bool:
        """Whether the user has a service manager that answers."""
        if shutil.which("systemctl") is None:
            return False
        return _systemctl("show-environment", check=False).returncode == 0

    @staticmethod
    def lingers() -> bool:
        """Whether the user's services outlive the last session of the user (loginctl(1))."""
        return (LINGER / pwd.getpwuid(os.getuid()).pw_name).exists()

    def start(self, folder: Path, spec: dict[str, Any]) -> Service:
        unit = unit_path(folder)
        journal = ["journalctl", "--user", "--unit", unit.name, "--lines", "50"]
        journal += ["--output", "cat", "--no-pager"]
        service.write_spec(folder, spec | {"journal": journal})
        unit.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(unit, render_unit(folder, spec).encode())
        _systemctl("daemon-reload")
        _systemctl("enable", unit.name)
        _systemctl("restart", "--no-block", unit.name)
        return service.await_record(folder, None, lambda: self._ended(unit.name))

    def stop(self, running: Service, grace: float) -> None:
        unit = unit_path(running.folder)
        if unit.exists():
            if self.reachable():
                _systemctl("disable", "--now", unit.name, seconds=grace + SYSTEMCTL_SECONDS)
            unit.unlink()
            (unit.parent / "default.target.wants" / unit.name).unlink(missing_ok=True)
            if self.reachable():
                _systemctl("daemon-reload")
        running.stop(grace)  # what systemd left, and the record

    @staticmethod
    def _ended(unit: str) -> int | None:
        """The exit status of the unit's process once systemd has given it up."""
        shown = _systemctl("show", "--property=ActiveState,ExecMainStatus", unit).stdout
        state = dict(line.partition("=")[::2] for line in shown.splitlines())
        return int(state["ExecMainStatus"]) if state["ActiveState"] == "failed" else None


def keeper_of(spec: dict[str, Any]) -> Supervisor:
    """The supervisor that a service was started with."""
    return SystemdUser() if spec.get("keeper") == "systemd-user" else Session()


def supervisor(kind: str) -> Supervisor:
    """The supervisor of that kind. `auto` is the user's systemd where it can be reached and its
    services outlive a log-out, which a session of its own does anyway."""
    if kind == "session":
        return Session()
    if SystemdUser.reachable() and (kind == "systemd-user" or SystemdUser.lingers()):
        return SystemdUser()
    if kind == "auto":
        return Session()
    raise StepFailure(
        "the user's systemd cannot be reached",
        code="no_user_manager",
        cause="`systemctl --user` does not answer: there is no login session of this user",
        remedy="`loginctl enable-linger`, log in anew, or set `supervisor: session`",
    )


def unit_path(folder: Path) -> Path:
    """The unit of the service in a folder: one name for one workspace, whatever its path."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return base / "systemd" / "user" / f"runbook-{name}.service"


def render_unit(folder: Path, spec: dict[str, Any]) -> str:
    from importlib.resources import files

    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    source = files("runbook.templates").joinpath("vllm.service.j2").read_text()
    return environment.from_string(source).render(
        folder=quote(str(folder), in_exec=False),
        log=quote(str(service.log_path(folder)), in_exec=False),
        model=quote(spec["argv"][2], in_exec=False),
        command=" ".join(quote(word) for word in service.launcher(folder)),
        stop_grace=spec["stop_grace"],
    )


def quote(word: str, in_exec: bool = True) -> str:
    """A word as systemd.syntax(7) wants it: `%` doubled, and, in a command, `$` doubled and
    quotes around it."""
    escaped = word.replace("%", "%%")
    if not in_exec:
        return escaped
    escaped = escaped.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'


def _systemctl(
    *arguments: str, check: bool = True, seconds: float = SYSTEMCTL_SECONDS
) -> subprocess.CompletedProcess[str]:
    command = ["systemctl", "--user", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise StepFailure(
            f"`{' '.join(command)}` does not answer", code="systemd_hangs", remedy="try again"
        ) from error
    if check and done.returncode != 0:
        raise StepFailure(
            f"`{' '.join(command)}` failed",
            code="systemd_failed",
            cause=done.stderr.strip(),
            remedy="set `supervisor: session` in the serve step",
        )
    return done
