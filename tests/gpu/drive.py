"""Serve a synthetic checkpoint on this machine's GPUs, unattended, from staged parts:

    python3 drive.py {six,full,0731} --parts FOLDER --out FOLDER [--limit SECONDS] [--caches FOLDER]
        [--sequence NAME | --fresh-caches]

Environment, checkpoint, run, questions, report: each has a time limit of its own, and the whole
ends before --limit with its logs in --out, whatever happens. Called again it goes on where it was,
as the run itself is detached and outlives a call. Exits 0 when served, 7 while the run goes on,
else 1.

A sequence is one or more starts, each told in summary.json as one of its `legs`:
kernels-first, from empty caches the step `kernels`, then the start that finds what it left;
without-kernels, from empty caches the first start alone, then a second.
Needs CPython 3.12, PyTorch for CUDA 13, nvcc, gcc and xz on the machine, and no network.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import (
    COMPILED,
    ENVIRONMENT,
    HOME,
    MEMORY,
    STAGE,
    Overdue,
    call,
    environment,
    last_line,
    say,
    unpack,
    workspace,
)

HERE = Path(__file__).resolve().parent
BOOKS = {
    "six": ("six-layers-one-gpu.yaml", MEMORY / "runbook-six", 6, "flagship"),
    "full": ("full-size-two-h200.yaml", MEMORY / "runbook-full", 43, "flagship"),
    "0731": ("0731-two-h200.yaml", MEMORY / "runbook-0731", 43, "0731"),
}
"""Book, checkpoint, its layers, and the release that it is like."""
SEQUENCES: dict[str, list[dict[str, Any]]] = {
    "kernels-first": [{"leg": "kernels, then first start", "fresh": True, "kernels": True}],
    "without-kernels": [
        {"leg": "first start", "fresh": True, "kernels": False},
        {"leg": "second start", "fresh": False, "kernels": False},
    ],
}
"""For each start: whether its caches are removed before, and whether `kernels` goes first."""
STARTED = ("kernels", "serve")
"""The steps that start a server, and so have phases."""
REPORT_SECONDS = 60
"""Kept free at the end for the report."""
PIECE = 15 << 20
"""Bytes of one piece of the caches: what is sent back may not be larger."""
GOES_ON, LOCKED = 7, 6
"""Exit codes of `runbook wait` and `runbook run`: not finished; another run holds the lock."""
SAMPLE = "timestamp,index,name,memory.used,utilization.gpu,power.draw"


class Drive:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.monotonic() + options.limit
        self.book, self.checkpoint, self.layers, self.release = BOOKS[options.size]
        self.workspace = workspace(options.size, self.checkpoint, self.layers)
        self.timeline = STAGE / "timeline.json"
        self.legs = STAGE / f"legs-{getattr(options, 'sequence', None)}.json"
        self.answers: list[dict[str, Any]] = []

    def left(self) -> float:
        return self.end - time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record how long a stage took, over all calls."""
        began, ok = time.time(), False
        say(f"{name} ...")
        try:
            yield
            ok = True
        finally:
            seconds = round(time.time() - began, 1)
            entries = json.loads(self.timeline.read_text()) if self.timeline.exists() else []
            entries.append({"stage": name, "at": round(began), "seconds": seconds, "ok": ok})
            self.timeline.write_text(json.dumps(entries, indent=1))
            say(f"{name}: {seconds} s" + ("" if ok else ", not finished"))

    def call(self, argv: list[Any], limit: float, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a program for at most `limit` seconds, and never into the time of the report."""
        limit = max(1.0, min(limit, self.left() - REPORT_SECONDS))
        return call(argv, limit, **how)

    def prepare(self) -> None:
        """Environment, caches and checkpoint, as far as they are not there."""
        with self.stage("environment"):
            unpack(Path(self.options.parts), self.call)
        if self.options.caches:
            with self.stage("caches"):
                self.caches()
        with self.stage("checkpoint"):
            self.write_checkpoint()
        if self.options.fresh_caches:
            with self.stage("fresh caches"):
                self.fresh_caches()

    def caches(self) -> None:
        """Put in place what an earlier machine compiled, once."""
        if HOME.exists():
            return
        pieces = sorted(Path(self.options.caches).glob("caches.tar.xz.*"))
        if not pieces:
            raise SystemExit(f"there are no caches in {self.options.caches}")
        HOME.mkdir(parents=True)
        unpack = f"cat {' '.join(map(str, pieces))} | xz -dc | tar -C {HOME} -xf -"
        self.call(["bash", "-o", "pipefail", "-c", unpack], 60, check=True)

    def write_checkpoint(self) -> None:
        if not self.checkpoint.exists():
            argv = [ENVIRONMENT / "bin/python", HERE / "flagship.py"]
            argv += [self.checkpoint, self.layers, self.release]
            self.call(argv, 150, check=True)

    def fresh_caches(self) -> None:
        """End the server and remove all that was ever compiled here."""
        if self.workspace.exists():
            self.runbook("cancel", limit=60)
            done = self.runbook("destroy", *STARTED, "--yes", limit=90)
            if done.returncode:
                raise SystemExit("what was served cannot be undone")
        for folder in (HOME, *COMPILED):
            shutil.rmtree(folder, ignore_errors=True)

    def sequence(self) -> int:
        """The starts of a sequence one after the other, from the one that is not done."""
        legs = SEQUENCES[self.options.sequence]
        state = json.loads(self.legs.read_text()) if self.legs.exists() else []
        for number, leg in enumerate(legs):
            if number < len(state) and state[number].get("done"):
                continue
            if number == len(state):
                if leg["fresh"]:
                    self.fresh_caches()
                state.append({"leg": leg["leg"], "began": round(time.time())})
                self.legs.write_text(json.dumps(state, indent=1))
                again = () if leg["fresh"] else ("--force", "serve")
            else:
                again = ()
            say(f"leg: {leg['leg']}")
            kernels = f"kernels={str(leg['kernels']).lower()}"
            code = self.run("--set", kernels, "--until", "serve", *again)
            if code:
                return code
            state[number] |= {
                "done": round(time.time()),
                **self.started(f"{self.options.sequence}-{number}"),
            }
            self.legs.write_text(json.dumps(state, indent=1))
        return 0

    def started(self, name: str) -> dict[str, Any]:
        """What the steps that start servers say of their starts; their logs are put aside."""
        found: dict[str, Any] = {}
        for step in STARTED:
            file = self.workspace / ".runbook" / "checkpoints" / f"{step}.json"
            if file.exists():
                outputs = json.loads(file.read_text())["outputs"]
                words = ("seconds", "start_seconds", "phases", "backends", "near_limit_tokens")
                found[step] = {word: outputs[word] for word in words if word in outputs}
        for log in self.logs():
            kept = STAGE / "starts" / name
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, kept / f"{self.step(log)}.log")
        return found

    def step(self, log: Path) -> str:
        return log.relative_to(self.workspace).parts[0]

    def run(self, *more: str) -> int:
        """Start the run unless one goes on, and wait as long as there is time."""
        HOME.mkdir(parents=True, exist_ok=True)
        given = [f"checkpoint={self.checkpoint}", f"vllm={ENVIRONMENT}/bin/vllm"]
        given += [f"python={ENVIRONMENT}/bin/python"] if self.options.size != "six" else []
        given += [f"port={self.options.port}", f"devices={self.options.devices}"]
        given += self.options.set
        words = [word for value in given for word in ("--set", value)]
        words += [*self.options.run, *more]
        started = self.runbook("run", "--detach", "--yes", *words, limit=60)
        if started.returncode not in (0, LOCKED):
            return started.returncode
        code = GOES_ON
        while code == GOES_ON and self.left() > REPORT_SECONDS + 5:
            seconds = min(30.0, self.left() - REPORT_SECONDS - 4)
            code = self.runbook(
                "wait", "--timeout", f"{seconds:.0f}", limit=seconds + 15
            ).returncode
            for log in self.logs():
                say("  server: " + last_line(log))
        return code

    def runbook(self, verb: str, *words: str, limit: float) -> subprocess.CompletedProcess[str]:
        argv = [ENVIRONMENT / "bin/runbook", verb, HERE / self.book, *words]
        argv += ["--workspace", self.workspace]
        return self.call(argv, limit, env=environment(), expected=GOES_ON)

    def logs(self) -> list[Path]:
        return sorted(self.workspace.rglob("server.log"))

    def ask(self) -> None:
        """A short question and a long one."""
        for words, tokens in ((8, 128), (self.options.words, 16)):
            prompt = " ".join(f"w{i:06d}" for i in range(1000, 1000 + words))
            body = {
                "model": "synthetic",
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "ignore_eos": True,
                "chat_template_kwargs": {"thinking": False},
            }
            limit = max(5.0, min(120.0, self.left() - REPORT_SECONDS))
            began = time.monotonic()
            url = f"http://127.0.0.1:{self.options.port}/v1/chat/completions"
            answer = post(url, body, limit)
            answer["seconds"] = round(time.monotonic() - began, 2)
            self.answers.append(answer)
            say(f"  asked {words} words: {json.dumps(answer)[:200]}")

    def report(self, code: int) -> None:
        """Whatever is known, into --out: summary.json, logs.tar.xz, caches.tar.xz.NN."""
        out = Path(self.options.out)
        out.mkdir(parents=True, exist_ok=True)
        summary: dict[str, Any] = {
            "size": self.options.size,
            "exit_code": code,
            "stages": json.loads(self.timeline.read_text()) if self.timeline.exists() else [],
            "answers": self.answers,
            "gpus": call(["nvidia-smi", f"--query-gpu={SAMPLE}", "--format=csv"], 10).stdout,
            "topology": call(["nvidia-smi", "topo", "-m"], 10).stdout,
        }
        for log in self.logs():
            argv = [ENVIRONMENT / "bin/python", HERE / "phases.py", log]
            said = call(argv, 10, env=environment()).stdout
            summary[f"phases of {self.step(log)}"] = json.loads(said) if said[:1] == "[" else said
        if self.legs.exists():
            summary["legs"] = json.loads(self.legs.read_text())
        if (ENVIRONMENT / "bin/runbook").exists():
            argv = [ENVIRONMENT / "bin/runbook", "status", HERE / self.book, "--json"]
            said = call([*argv, "--workspace", self.workspace], 10, env=environment()).stdout
            summary["status"] = json.loads(said) if said.startswith("{") else said
        (out / "summary.json").write_text(json.dumps(summary, indent=1))
        kept = ["gpu.csv", "starts", *(p.name for p in STAGE.glob("*.json"))]
        words: list[Any] = ["tar", "--exclude=*.safetensors", "-cJf", out / "logs.tar.xz"]
        words += ["-C", STAGE, *(name for name in kept if (STAGE / name).exists())]
        if self.workspace.exists():
            words += ["-C", self.workspace.parent, self.workspace.name]
        call(words, 20)
        if HOME.exists() and not self.options.no_caches:
            pack = f"tar -C {HOME} -cf - . | xz -T0 -1 | split -b {PIECE} -d - {out}/caches.tar.xz."
            call(["bash", "-c", pack], 30)


def post(url: str, body: dict[str, Any], limit: float) -> dict[str, Any]:
    import urllib.request

    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=limit) as answer:
            said = json.load(answer)
    except OSError as error:
        return {"error": str(error)}
    return {"usage": said["usage"], "text": str(said["choices"][0]["message"])[:300]}


def parser(description: str) -> argparse.ArgumentParser:
    """What a drive is given on the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=BOOKS)
    parser.add_argument("--parts", required=True, help="folder with part.00 ...")
    parser.add_argument("--out", required=True, help="folder for logs, summary and caches")
    parser.add_argument("--limit", type=float, default=570, help="seconds for all of it")
    parser.add_argument("--caches", help="folder with caches.tar.xz.00 ... of an earlier machine")
    parser.add_argument("--port", type=int, default=8000, help="port of the server")
    parser.add_argument("--devices", default="", help="numbers of the GPUs, as 2,3; all by default")
    parser.add_argument(
        "--set", action="append", default=[], help="an input of the book, key=value"
    )
    parser.add_argument("--run", action="append", default=[], help="a word more for `runbook run`")
    parser.add_argument("--words", type=int, default=20_000, help="words of the long question")
    parser.add_argument("--sequence", choices=SEQUENCES, help="the starts to make")
    parser.add_argument("--fresh-caches", action="store_true", help="remove what was compiled")
    parser.add_argument("--no-caches", action="store_true", help="do not bring caches back")
    return parser


def driven(drive: Drive, work: Callable[[], int]) -> int:
    """The exit code of the work, done where environment and checkpoint are; with a report, whatever
    happens."""
    STAGE.mkdir(parents=True, exist_ok=True)
    with (STAGE / "gpu.csv").open("a") as samples:
        watch = subprocess.Popen(
            ["nvidia-smi", f"--query-gpu={SAMPLE}", "--format=csv,noheader", "-l", "5"],
            stdout=samples,
        )
    code = 1
    try:
        drive.prepare()
        code = work()
    except Overdue as overdue:
        say(f"{overdue} took too long")
    finally:
        watch.terminate()
        with drive.stage("report"):
            drive.report(code)
    return code


def main() -> int:
    options = parser(__doc__).parse_args()
    drive = Drive(options)

    def serve() -> int:
        with drive.stage("run"):
            code = drive.sequence() if options.sequence else drive.run()
        if code == 0:
            with drive.stage("ask"):
                drive.ask()
        return code

    return driven(drive, serve)


if __name__ == "__main__":
    sys.exit(main())
