"""How services ended that had been ready: when, how often, and what their logs say of it.

The record is `deaths.json` in the service's folder. The next process of the service writes it
before it takes the place of the dead one (whoever starts it: an attempt, or a service manager), and
a look at a dead service that was not replaced yet finds the same without writing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runbook.files import read_json, write_json
from runbook.process import boot_id
from runbook.protocol import Reason
from runbook.remedy import Remedies, Remedy, dump
from runbook.steps.common.service import Service

FILE, TOLD = "deaths.json", "death.json"
KEPT = 20
LOG_BYTES = 2**16
LOG_LINES = 200
SHOWN_LINES = 3
QUOTED = 200
"""Characters of a line of the log that are shown."""
JOURNAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Death:
    """One end of a service that nobody asked for."""

    at: str
    """When its log was last written, local time: the death came with it or after it."""
    process: dict[str, Any]
    log: list[str]
    keeper: list[str]
    """What the service manager says of it, if one keeps it."""
    rebooted: bool
    """The machine was restarted meanwhile: no fault of the service's."""

    def dump(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def of(running: Service) -> Death | None:
    """The death of a service that was ready and runs no more; None if that is not so."""
    if not running.ready or running.alive():
        return None
    try:
        written = running.log.stat().st_mtime
        with running.log.open("rb") as file:
            file.seek(max(0, running.log.stat().st_size - LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    except FileNotFoundError:
        written, lines = 0.0, []
    return Death(
        at=datetime.fromtimestamp(written).astimezone().isoformat(" ", "seconds"),
        process=running.process.dump(),
        log=lines,
        keeper=_journal(running.spec.get("journal", [])),
        rebooted=running.process.boot_id != boot_id(),
    )


def known(folder: Path) -> list[Death]:
    """The deaths recorded so far, the latest last."""
    return [Death(**entry) for entry in read_json(folder / FILE) or []]


def record(running: Service) -> Death | None:
    """Record the death of a service, once, if it died."""
    death = of(running)
    if death is None:
        return None
    before = known(running.folder)
    if all(other.process != death.process for other in before):
        entries = [entry.dump() for entry in [*before, death][-KEPT:]]
        write_json(running.folder / FILE, entries)
    return death


def clear(folder: Path) -> None:
    """Forget them: another service takes the place."""
    (folder / FILE).unlink(missing_ok=True)


def describe(death: Death, count: int, kind: str) -> Reason:
    """A death in words: when, why, with lines of the log, and how often. `kind` is that of the
    step whose known failures the log may show."""
    code, head, why, remedy = _told(death, count, kind)
    return Reason(code, f"{head}: {why}" if why else head, remedy)


def _told(death: Death, count: int, kind: str) -> tuple[str, str, str, Remedies]:
    """Of a death its code, when and how often, why, and what mends it."""
    from runbook.steps.common.diagnoses import diagnose, root_error

    text = "\n".join(death.log)
    again = Remedy("run", text="{command} starts it again")
    if death.rebooted:
        return "machine_restarted", "the machine was restarted since", "", again
    before = f"; so did {count - 1} before it" if count > 1 else ""
    head = f"process {death.process['pid']} died at {death.at} or soon after{before}"
    finding = diagnose(kind, text)
    if finding is not None:
        why = f"{finding.diagnosis.cause} ({finding.line.strip()})"
    else:
        error = root_error(text)
        shown = " / ".join(_shown(death.log))
        why = f"{error or 'its log says nothing of it'}; the log ends: {shown}"
    code = finding.diagnosis.id if finding else "server_dead"
    remedy = finding.diagnosis.remedy if finding else again
    return code, head, "; ".join([why, *death.keeper]), remedy


def ended(uses: str, outputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the service ended that a step of kind `uses` told of in its outputs, as the error of an
    answer; None if nothing is known of it. What is read of a log is kept beside it, so that who
    asks again is answered at once."""
    if not isinstance(outputs.get("log"), str):
        return None
    folder = Path(outputs["log"]).parent
    running, found = Service.load(folder), known(folder)
    asked = {"process": outputs["process"], "recorded": len(found), "uses": uses}
    kept = read_json(folder / TOLD)
    if not isinstance(kept, dict) or kept.get("asked") != asked:
        now = of(running) if running is not None else None
        if now is not None and all(other.process != now.process for other in found):
            found.append(now)
        death = next((one for one in reversed(found) if one.process == outputs["process"]), None)
        if death is None:
            return None
        code, head, why, remedy = _told(death, len(found), uses)
        kept = {"asked": asked, "code": code, "head": head, "why": why, "remedy": dump(remedy)}
        with suppress(OSError):  # a folder that only another may write: it is told anew each time
            write_json(folder / TOLD, kept)
    message = kept["head"]
    if running is not None and running.alive():
        message += f"; process {running.process.pid} was started in its place"
    return {
        "code": kept["code"],
        "message": message,
        "cause": kept["why"],
        "remedy": kept["remedy"],
        "retryable": True,
        "where": "",
        "log": outputs["log"],
    }


def _shown(lines: Sequence[str]) -> list[str]:
    return [line.strip()[:QUOTED] for line in lines if line.strip()][-SHOWN_LINES:]


def _journal(command: list[str]) -> list[str]:
    """What the service manager wrote of the end of its process."""
    if not command:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=JOURNAL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    ends = [line for line in done.stdout.splitlines() if "exited" in line or "killed" in line]
    return ends[-1:]
