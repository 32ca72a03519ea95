"""What a served model must survive, on this machine's GPUs, after drive.py has served one:

    python3 exercise.py {six,full,0731} --out FOLDER [--limit SECONDS]

A run that finds all done; a rank stopped while the server starts anew, which must be found and
named; the supervisor killed while the next start goes on, then `status`, `run` and, last,
`destroy`, which must leave nothing on the GPUs. Each part is written to exercise.json as soon as it
is known.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from drive import BOOKS, Drive
from machine import call, say


class Exercise:
    def __init__(self, options: argparse.Namespace) -> None:
        self.drive = Drive(options)
        self.out = Path(options.out)
        self.told: dict[str, Any] = {}

    def tell(self, name: str, value: Any) -> None:
        self.told[name] = value
        say(f"{name}: {json.dumps(value)[:600]}")
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "exercise.json").write_text(json.dumps(self.told, indent=1))

    def ask(self, verb: str, *words: str, limit: float = 60) -> dict[str, Any]:
        """The document that a verb answers, with its exit code and how long it took."""
        began = time.monotonic()
        done = self.drive.runbook(verb, *words, "--json", limit=limit)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        answer = json.loads(lines[-1]) if lines else {"said": done.stdout[-2000:]}
        seconds = round(time.monotonic() - began, 2)
        return {"exit_code": done.returncode, "seconds_taken": seconds, **answer}

    def nothing_to_do(self) -> None:
        done = self.ask("run", "--yes")
        decisions = {step["id"]: step["decision"] for step in done["steps"]}
        self.tell("run of what is done", {"seconds": done["seconds_taken"], **decisions})

    def rank_stopped(self) -> None:
        """Start anew, stop a rank with SIGSTOP, and see what the run says of it."""
        before = self._worker(limit=0)
        self.ask("run", "--force", "serve", "--yes", "--detach")
        worker = self._worker(limit=150, besides=before)
        if worker is None:
            self.tell("rank stopped", {"found": False, "why": "no worker process was seen"})
            return
        time.sleep(5)
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        answer = self.ask("wait", "--timeout", "90", limit=120)
        self.tell(
            "rank stopped",
            {
                "pid": worker,
                "seconds_until_told": round(time.monotonic() - began, 1),
                "exit_code": answer["exit_code"],
                "error": answer.get("error"),
            },
        )

    def supervisor_killed(self) -> None:
        """Start, kill the supervisor of the run with SIGKILL, and go on by `run`."""
        began = time.monotonic()
        self.ask("run", "--yes", "--detach")
        time.sleep(20)
        lock = json.loads((self.drive.workspace / ".runbook" / "lock").read_text())
        os.kill(lock["pid"], signal.SIGKILL)
        time.sleep(1)
        status = self.ask("status")
        states = {step["id"]: step["state"] for step in status["steps"]}
        self.tell("supervisor killed", {"run": status["run"]["state"], "steps": states})
        waited = self.ask("wait", "--timeout", str(int(self.drive.left() - 120)), limit=600)
        self.tell("its worker waited for", {key: waited.get(key) for key in ("exit_code", "error")})
        again = self.ask("run", "--yes", limit=200)
        self.tell(
            "run after it",
            {
                "exit_code": again["exit_code"],
                "decisions": {step["id"]: step["decision"] for step in again["steps"]},
                "seconds_since_the_start": round(time.monotonic() - began, 1),
            },
        )

    def destroyed(self) -> None:
        answer = self.ask("destroy", "serve", "--yes", limit=90)
        time.sleep(2)
        memory = call(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], 10
        ).stdout.split()
        left = call(["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], 10).stdout
        told = {"exit_code": answer["exit_code"], "memory_mib": memory, "processes": left.split()}
        self.tell("destroyed", told)

    def _worker(self, limit: float, besides: int | None = None) -> int | None:
        """The process of the last rank, once it is there; not that of the server before."""
        end = time.monotonic() + limit
        while True:
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    name = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if re.search(r"VLLM::(?:Worker_TP1|EngineCore)", name):
                    found = int(entry.parent.name)
                    if found != besides:
                        return found
            if time.monotonic() >= end:
                return None
            time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=BOOKS)
    parser.add_argument("--out", required=True, help="folder for exercise.json")
    parser.add_argument("--limit", type=float, default=570, help="seconds for all of it")
    parser.add_argument("--part", action="append", choices=("faults", "destroy"))
    exercise = Exercise(options := parser.parse_args())
    parts = options.part or ["faults", "destroy"]
    exercise.nothing_to_do()
    if "faults" in parts:
        exercise.rank_stopped()
        exercise.supervisor_killed()
    if "destroy" in parts:
        exercise.destroyed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
