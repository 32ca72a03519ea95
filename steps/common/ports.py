"""Who listens on a TCP port of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runbook.process import open_files
from runbook.protocol import PreconditionNotMet
from runbook.remedy import Remedy

LISTEN = "0A"
SEARCHED = 100
"""Ports that are looked at for a free one."""
LAST = 65535


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with a listening socket. `pid` is None where /proc does not let us see it."""

    pid: int | None
    command: str

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"process {self.pid} ({self.command})"


def in_use(host: str, port: int) -> bool:
    """Whether a server could not listen there now. Looks as a server does: by trying to bind."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def require_free(host: str, port: int, step: str) -> None:
    """Raises `PreconditionNotMet`, naming who listens there, unless a server of `step` could."""
    if not in_use(host, port):
        return
    found = holder(port)
    kill = f"end it (`kill {found.pid}`)" if found and found.pid else "ask its owner to end it"
    raise PreconditionNotMet(
        f"port {port} is in use by {found or 'another process'}",
        code="port_in_use",
        cause="the server cannot listen where another process does",
        remedy=another(host, port, kill),
    )


def another(host: str, port: int, end: str = "end it") -> Remedy:
    """What to do about a port that is in use: `end` who has it, or take the next one that is
    free, if the document has an input `port`."""
    following = range(port + 1, min(port + SEARCHED, LAST) + 1)
    free = next((other for other in following if not in_use(host, other)), None)
    chosen = f"{end}, or choose another `port` for the step"
    if free is None:
        return Remedy("run", text=f"{chosen}, then {{command}}")
    return Remedy("run", ("--set", f"port={free}"), text=f"{end}, or {{command}}", otherwise=chosen)


def holder(port: int) -> Holder | None:
    """The process that listens on a port, found through /proc; None if no one listens."""
    inodes = {
        fields[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for fields in (line.split() for line in Path(table).read_text().splitlines()[1:])
        if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port
    }
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and not wanted.isdisjoint(open_files(int(entry), os.readlink)):
            return Holder(int(entry), _command(entry))
    return Holder(None, "")


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended meanwhile"
    return b" ".join(words).decode(errors="replace").strip()[:120]
