"""Measure a synthetic checkpoint served in several ways, one start each, on this machine's GPUs:

    python3 measure.py {full,0731,six} --parts FOLDER --out FOLDER [--way NAME]... [as drive.py]

full: with the MTP head, without, and with NCCL as it chooses by itself; 0731: with its draft and
without. Each is measured by `runbook bench`, after a round that compiles what no start has; the
first beside `vllm bench serve`, too. six: `runbook tune`, killed while it measures its second
candidate and called again. All is written to measured.json as soon as it is known, and what is
there is not measured again: the same command goes on where it was. Once all is measured the server
is ended. Exits as drive.py does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from drive import GOES_ON, HERE, Drive, driven, parser
from machine import ENVIRONMENT, PROJECT, environment, say

QUICK = {"jit_warmup": "false", "deep_gemm_warmup": "skip", "near_limit_tokens": "16384"}
"""Nothing is compiled that these measurements do not need."""
WAYS: dict[str, dict[str, dict[str, str]]] = {
    "full": {
        "mtp": {"draft_tokens": "1", "nccl_settings": "true"},
        "without a draft": {"draft_tokens": "0", "nccl_settings": "true"},
        "NCCL by itself": {"draft_tokens": "1", "nccl_settings": "false"},
    },
    "0731": {"dspark": {"draft_tokens": "5"}, "without a draft": {"draft_tokens": "0"}},
    "six": {"tune": {}},
}
BASE = {
    "full": {"profile": "throughput", "kernels": "false"},
    "0731": {"profile": "balanced", "kernels": "false"},
    "six": {},
}
"""Eight streams at once are served by these."""
LENGTHS = ("--input-length", "128", "--output-length", "128")
SECOND = 2
"""The candidate at which `tune` is killed."""
LEAST = 60.0
"""Seconds that a measurement is not begun without."""


class Measure:
    def __init__(self, drive: Drive, streams: str) -> None:
        self.drive, self.streams = drive, streams
        self.file = Path(drive.options.out) / "measured.json"
        self.told: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def tell(self, way: str, **what: Any) -> None:
        self.told.setdefault(way, {}).update(what)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.told, indent=1))
        say(f"{way}: {json.dumps(what)[:400]}")

    def known(self, way: str, name: str) -> bool:
        return name in self.told.get(way, {})

    def ways(self, names: list[str]) -> int:
        measured = False
        for number, way in enumerate(names):
            given = QUICK | BASE[self.drive.options.size] | WAYS[self.drive.options.size][way]
            last = "tuned" if way == "tune" else "bench"
            if self.known(way, last) and (number or way == "tune" or self.known(way, "against")):
                continue
            words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
            if code := self.drive.run(*words, "--until", "serve"):
                return code
            if not self.known(way, "started"):
                self.tell(way, started=self.drive.started(way))
            if self.drive.left() < LEAST:
                return GOES_ON
            code = self.tune() if way == "tune" else self.speed(way, against=not number)
            if code:
                return code
            measured = True
        if measured:  # the cards and the port are for what comes next
            self.drive.runbook("destroy", "serve", "--yes", limit=90)
        return 0

    def speed(self, way: str, against: bool) -> int:
        if not self.known(way, "bench"):
            self.ask("bench", "--concurrency", self.streams, *LENGTHS, "--repetitions", "1")
            words = ("--repetitions", "3", "--requests", "2")
            answer = self.ask("bench", "--concurrency", self.streams, *LENGTHS, *words)
            if "points" not in answer:
                say(f"bench: {json.dumps(answer)[:2000]}")
                return GOES_ON
            self.tell(way, bench=[self.point(point) for point in answer["points"]])
        if against and not self.known(way, "against"):
            if self.drive.left() < LEAST:
                return GOES_ON
            argv = [ENVIRONMENT / "bin/python", PROJECT / "tests/benchmarks/bench_against_vllm.py"]
            argv += [HERE / self.drive.book, "--workspace", self.drive.workspace]
            argv += ["--concurrency", self.streams, "--requests", "2", "--rounds", "4"]
            argv += ["--input-length", "128", "--output-length", "64"]
            done = self.drive.call(argv, 300, env=environment())
            lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
            verdicts = [line for line in lines if "rounds" in line]
            if len(verdicts) < len(self.streams.split(",")):
                say(f"bench_against_vllm.py exits {done.returncode}: {done.stdout[-2000:]}")
                return GOES_ON
            self.tell(way, against=verdicts)
        return 0

    def point(self, point: dict[str, Any]) -> dict[str, Any]:
        """What one compares. Passes of the target compare with those of a trained draft, tokens of
        one whose drafts are accepted by chance do not."""
        count = point["asked"]["concurrency"]
        kept = ("output_tokens_per_second", "deviation", "ttft_seconds", "tpot_seconds")
        told = {name: point[name] for name in (*kept, "acceptance", "tokens_per_pass", "watts")}
        passes = point["output_tokens_per_second"] / count / (point["tokens_per_pass"] or 1)
        passes = round(passes, 2)
        return {"streams": count, **told, "passes_per_second_and_stream": passes}

    def tune(self) -> int:
        words = ("--concurrency", "2", *LENGTHS, "--repetitions", "3", "--requests", "2")
        if not self.known("tune", "killed"):
            self.tell("tune", killed=self.kill_at(SECOND, words))
        answer = self.ask("tune", *words)
        if "best" not in answer:
            say(f"tune: {json.dumps(answer)[:2000]}")
            return GOES_ON
        tried = [{key: one[key] for key in ("values", "score", "seconds", "error")}
                 for one in answer["tried"]]  # fmt: skip
        profile = Path(answer["profile_file"]).read_text()
        status = self.ask("status")
        states = {step["id"]: step["state"] for step in status["steps"]}
        self.tell("tune", tuned=tried, best=answer["best"]["values"], profile=profile, then=states)
        return 0

    def kill_at(self, candidate: int, words: tuple[str, ...]) -> dict[str, Any]:
        """`tune` killed with SIGKILL 5 seconds after it has begun to start a candidate."""
        argv = [ENVIRONMENT / "bin/runbook", "tune", HERE / self.drive.book, *words]
        argv += ["--workspace", self.drive.workspace]
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert process.stderr is not None
        begun = 0
        for line in process.stderr:
            say(f"  tune: {line.rstrip()}")
            begun += line.rstrip().endswith(": start")
            if begun == candidate:
                time.sleep(5)
                os.kill(process.pid, signal.SIGKILL)
                break
        return {"exit_code": process.wait(), "candidates_begun": begun}

    def ask(self, verb: str, *words: str) -> dict[str, Any]:
        """The document that a verb answers."""
        done = self.drive.runbook(verb, *words, "--json", limit=500)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {"said": done.stdout[-2000:]}
        return answer


def main() -> int:
    given = parser(__doc__)
    given.add_argument("--way", action="append", help="what to measure; all by default")
    given.add_argument("--streams", default="1,2,4,8", help="the concurrencies to measure")
    options = given.parse_args()
    drive = Drive(options)
    measure = Measure(drive, options.streams)
    return driven(drive, lambda: measure.ways(options.way or list(WAYS[options.size])))


if __name__ == "__main__":
    sys.exit(main())
