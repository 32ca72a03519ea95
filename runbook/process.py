"""Processes, identified so that a recycled pid is never mistaken for the one that was meant."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MARK = "RUNBOOK_ATTEMPT"
"""Every process of an attempt has this in its environment, `<run>/<attempt>@<workspace>`, so that
one that left the session, or outlived all others, is found as well. One that was started with
another environment is found by a limit that it inherits (`carry`). A step that starts a service
which is to live on removes the variable, and calls `leave` in it."""
LIMIT = resource.RLIMIT_RTTIME
"""The limit that serves as a mark: CPU time under real-time scheduling, in microseconds. 2^61 of
them, 70,000 years, are none; but fork(2), execve(2), setsid(2), another environment and closed
descriptors leave it as it is, and anyone may read it (/proc/PID/limits)."""


_REALTIME = re.compile(rb"^Max realtime timeout +([0-9]+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Identity:
    """A process by pid, start time (clock ticks after boot, field 22 of /proc/PID/stat, see
    proc(5)) and boot id: the triple is unique over reboots and recycled pids."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a process that runs now; None if there is none, or only a zombie."""
        fields = _stat(pid)
        if fields is None or fields[0] in ("Z", "X"):
            return None
        return cls(pid, int(fields[19]), boot_id())

    @classmethod
    def load(cls, data: Any) -> Identity | None:
        """From the form that `dump` gives; None if `data` is not of that form."""
        try:
            return cls(int(data["pid"]), int(data["start_time"]), str(data["boot_id"]))
        except (KeyError, OverflowError, TypeError, ValueError):
            return None

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    def alive(self) -> bool:
        return Identity.of(self.pid) == self

    def signal(self, number: int) -> bool:
        """Send a signal if the process still is the one meant; whether it was sent."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on: the second may hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def session_members(sid: int) -> list[int]:
    """The living processes of a session (setsid(2)), zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = _stat(int(entry))
        if fields is not None and int(fields[3]) == sid and fields[0] not in ("Z", "X"):
            found.append(int(entry))
    return found


def attempt_mark(state: Path, attempt: str) -> str:
    """The value of `MARK` for an attempt, `<run>/<attempt>`, in the workspace of a state folder."""
    return f"{attempt}@{_key(state)}"


def carry(mark: str) -> None:
    """Let this process, and all that it starts, carry the mark of an attempt as a limit too. Where
    the limit may not be set, the environment alone has it."""
    try:
        resource.setrlimit(LIMIT, (_number(mark)[0], resource.getrlimit(LIMIT)[1]))
    except (OSError, ValueError):
        return


def leave() -> None:
    """In what is to outlive the attempt that starts it: carry its mark no longer."""
    soft, hard = resource.getrlimit(LIMIT)
    if soft != hard and soft >> 61 == 1:
        resource.setrlimit(LIMIT, (hard, hard))


def of_attempts(state: Path, run: str = "") -> list[int]:
    """The living processes that attempts in a workspace started, whoever still knows of them; of
    one run, if it is named."""
    number, masks = _number(f"{run.rstrip('/')}/@{_key(state)}")
    mask = masks["run" if run else "workspace"]
    return _marked(f"{MARK}={run}".encode(), f"@{_key(state)}".encode(), number, mask)


def of_attempt(mark: str) -> list[int]:
    """The living processes that an attempt started."""
    return _marked(f"{MARK}={mark}".encode(), b"", _number(mark)[0])


def _number(mark: str) -> tuple[int, dict[str, int]]:
    """A mark as a limit: bit 61, then 24 bits of a digest of the workspace, 12 of the run and 24 of
    the attempt. With the masks of what is of one workspace, and of one run of it."""
    attempt, _, workspace = mark.rpartition("@")
    run = attempt.partition("/")[0]
    number = 1 << 61
    for text, bits, place in ((workspace, 24, 36), (run, 12, 24), (attempt, 24, 0)):
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        number |= digest >> (32 - bits) << place
    return number, {"workspace": -1 << 36, "run": -1 << 24}


def _key(state: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(state))).hexdigest()[:16]


def marked(variable: str, prefix: str) -> list[int]:
    """The living processes whose environment was started with `variable=prefix...`: descendants
    are found even when they have left their session. Those of other users cannot be seen."""
    return _marked(f"{variable}={prefix}".encode(), b"")


def _marked(prefix: bytes, suffix: bytes, number: int = 0, mask: int = -1) -> list[int]:
    """By the environment, or by the limit where `number` is one."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        if (number and _limit(entry) & mask == number & mask) or any(
            item.startswith(prefix) and item.endswith(suffix)
            for item in _environment(entry).split(b"\0")
        ):
            fields = _stat(int(entry))
            if fields is not None and fields[0] not in ("Z", "X"):
                found.append(int(entry))
    return found


def _limit(pid: str) -> int:
    """The limit that a process carries; 0 if it is none that could be a mark."""
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            found = _REALTIME.search(file.read())
    except OSError:
        return 0  # it has ended
    return int(found[1]) if found is not None else 0


def _environment(pid: str) -> bytes:
    """What a process was started with. In the middle of execve(2) it reads as empty: then it is
    read again. Threads of the kernel, which have none, have no program either."""
    try:
        for _ in range(5):
            with open(f"/proc/{pid}/environ", "rb") as file:
                if found := file.read():
                    return found
            os.readlink(f"/proc/{pid}/exe")
            time.sleep(0.001)
    except OSError:
        pass  # it has ended, or is not ours to see
    return b""


def open_files(pid: int, look: Callable[[str], T]) -> Iterator[T]:
    """What `look` (os.stat, os.readlink) says of each descriptor of a process; nothing if it ended
    meanwhile, or belongs to another user. A process that works closes some while they are looked
    at: the others count all the same."""
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        for descriptor in os.listdir(folder):
            with suppress(OSError):
                yield look(f"{folder}/{descriptor}")


def session_in(leader: Identity, folder: Path) -> list[int]:
    """The living processes of a session that work in a folder, its leader dead or alive.

    The kernel gives a pid to no one while it still names a session, so if another process has the
    leader's pid, the session has ended; the folder tells it from one whose leader is gone too.
    """
    if leader.boot_id != boot_id():
        return []
    now = Identity.of(leader.pid)
    if now is not None and now != leader:
        return []
    root = os.path.realpath(folder)
    return [pid for pid in session_members(leader.pid) if f"{_cwd(pid)}/".startswith(f"{root}/")]


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def stop(
    find: Callable[[], list[int]], grace: float, hurry: Callable[[], bool] = lambda: False
) -> list[int]:
    """End the processes that `find` finds: SIGTERM, `grace` seconds (or until `hurry` says so),
    SIGKILL, then a look that none is left. Returns those that outlived SIGKILL by five seconds
    (none, in practice)."""
    members = find()
    _signal_all(members, signal.SIGTERM)
    _signal_all(members, signal.SIGCONT)  # one that was stopped acts on the other only then
    deadline = time.monotonic() + grace
    while members and time.monotonic() < deadline and not hurry():
        time.sleep(0.02)
        members = find()
    deadline = time.monotonic() + 5
    while members and time.monotonic() < deadline:
        _signal_all(members, signal.SIGKILL)
        time.sleep(0.02)
        members = find()
    return members


def stop_session(sid: int, grace: float) -> list[int]:
    """`stop` for all processes of a session."""
    return stop(lambda: session_members(sid), grace)


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue  # it has ended, or is another user's (sudo): the look afterwards tells
