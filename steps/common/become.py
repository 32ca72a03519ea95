"""The program that becomes a service: `python -m runbook.steps.common.become FOLDER`.

It records its process and then becomes the service by execve(2): pid and start time stay the same,
so at no moment does a service run that no record knows. It holds a lock on the folder for as long
as it lives, so two attempts, the first of them killed, cannot start it twice.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from runbook.files import read_json
from runbook.process import Identity, leave
from runbook.protocol import PreconditionNotMet
from runbook.steps.common import deaths, remote_code
from runbook.steps.common.service import EXIT_LOCKED, Service, inherited_environment, log_path

KEPT_LOGS = 3


def _rotate(log: Path) -> None:
    """server.log becomes server.log.1, that one .2, and so on; the oldest is overwritten."""
    for n in range(KEPT_LOGS - 1, 0, -1):
        older = log.with_name(f"{log.name}.{n}")
        newer = log if n == 1 else log.with_name(f"{log.name}.{n - 1}")
        if newer.exists():
            newer.replace(older)


def _record_death(folder: Path) -> None:
    """If the service that this one follows died: what its log says, before it is put away."""
    before = Service.load(folder)
    if before is not None:
        deaths.record(before)


def become(folder: Path) -> NoReturn:
    """Turn this process into the service of the folder; it must lead its session."""
    leave()
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(EXIT_LOCKED)
    os.set_inheritable(lock, True)
    spec = read_json(folder / "spec.json")
    log = log_path(folder)
    _record_death(folder)
    _rotate(log)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    process = Identity.of(os.getpid())
    assert process is not None, "this process runs"
    Service(folder, process, spec, ready=False, found={}).save()
    os.chdir(folder)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    try:
        remote_code.require(spec)  # it may be started again long after
    except PreconditionNotMet as refused:
        print(f"not started: {refused.message}; {refused.remedy}", file=sys.stderr)
        sys.exit(126)
    try:
        os.execve(spec["argv"][0], spec["argv"], _environment(spec))
    except OSError as error:
        what = error.filename or spec["argv"][0]
        print(f"cannot start {spec['argv'][0]}: {what}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


def _environment(spec: dict[str, Any]) -> dict[str, str]:
    environment: dict[str, str] = inherited_environment() | spec.get("base_env", {}) | spec["env"]
    for name, file in spec.get("secret_env", {}).items():
        environment[name] = Path(file).read_text().strip()
    search = [*spec["path"], environment.get("PATH", os.defpath)]
    environment["PATH"] = os.pathsep.join(search)
    return environment


if __name__ == "__main__":
    become(Path(sys.argv[1]))
