"""Serve a synthetic checkpoint on this machine's GPUs, unattended, from staged parts:

    python3 drive.py {six,full} --parts FOLDER --out FOLDER [--limit SECONDS] [--caches FOLDER]

Environment, checkpoint, run, questions, report: each has a time limit of its own, and the whole
ends before --limit with its logs in --out, whatever happens. Called again it goes on where it was,
as the run itself is detached and outlives a call. Exits 0 when served, 7 while the run goes on,
else 1.
Needs CPython 3.12, PyTorch for CUDA 13, nvcc, gcc and xz on the machine, and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
STAGE = Path("/tmp/runbook-gpu")
ENVIRONMENT = STAGE / "env"
HOME = STAGE / "home"
"""The home folder of all that runs: what is compiled and cached lands in here."""
BOOKS = {
    "six": ("six-layers-one-gpu.yaml", Path("/dev/shm/runbook-six"), 6),
    "full": ("full-size-two-h200.yaml", Path("/dev/shm/runbook-full"), 43),
}
REPORT_SECONDS = 60
"""Kept free at the end for the report."""
PIECE = 15 << 20
"""Bytes of one piece of the caches: what is sent back may not be larger."""
GOES_ON, LOCKED = 7, 6
"""Exit codes of `runbook wait` and `runbook run`: not finished; another run holds the lock."""
SAMPLE = "timestamp,index,name,memory.used,utilization.gpu,power.draw"
SCRIPTS = {
    "vllm": "from vllm.entrypoints.cli.main import main",
    "runbook": "from runbook.__main__ import main",
}


class Overdue(Exception):
    """A stage took longer than it may."""


class Drive:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.monotonic() + options.limit
        self.book, self.checkpoint, self.layers = BOOKS[options.size]
        self.workspace = STAGE / f"workspace-{options.size}"
        self.timeline = STAGE / "timeline.json"
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

    def environment(self) -> None:
        """A virtual environment with the staged packages before those of this machine's PyTorch."""
        done = ENVIRONMENT / ".ready"
        if done.exists():
            return
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        self.call([sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT], 60, check=True)
        (site,) = (ENVIRONMENT / "lib").glob("python3.*/site-packages")
        parts = sorted(Path(self.options.parts).glob("part.*"))
        if not parts:
            raise SystemExit(f"there are no parts in {self.options.parts}")
        unpack = f"cat {' '.join(map(str, parts))} | xz -dc -T0 | tar -C {site} -xf -"
        self.call(["bash", "-o", "pipefail", "-c", unpack], 180, check=True)
        parent = site_packages(sys.executable)
        # After the staged packages in the order of import, its own .pth files included.
        (site / "zz-parent.pth").write_text(f"import site; site.addsitedir({str(parent)!r})\n")
        (site / "runbook.pth").write_text(f"{PROJECT}\n")
        for name, line in SCRIPTS.items():
            script = ENVIRONMENT / "bin" / name
            # Guarded, since the engine's processes are spawned: they import this file again.
            guarded = 'if __name__ == "__main__":\n    sys.exit(main())\n'
            text = f"#!{ENVIRONMENT}/bin/python\nimport sys\n\n{line}\n\n{guarded}"
            script.write_text(text)
            script.chmod(0o755)
        compile_all = [ENVIRONMENT / "bin/python", "-m", "compileall", "-q", "-j", "0"]
        compile_all += ["-x", "flashinfer/data/", site]
        self.call(compile_all, 90)
        done.touch()

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
            argv = [ENVIRONMENT / "bin/python", HERE / "flagship.py", self.checkpoint, self.layers]
            self.call(argv, 150, check=True)

    def run(self) -> int:
        """Start the run unless one goes on, and wait as long as there is time."""
        HOME.mkdir(parents=True, exist_ok=True)
        sets = [word for value in self.options.set for word in ("--set", value)]
        started = self.runbook("run", "--detach", "--yes", *sets, *self.options.run, limit=60)
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
        return self.call(argv, limit, env=environment(), check=False)

    def logs(self) -> list[Path]:
        return sorted(self.workspace.glob("*/server.log"))

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
            answer = post("http://127.0.0.1:8000/v1/chat/completions", body, limit)
            answer["seconds"] = round(time.monotonic() - began, 2)
            self.answers.append(answer)
            say(f"  asked {words} words: {json.dumps(answer)[:200]}")

    def report(self, code: int) -> None:
        """Whatever is known, into --out: summary.json, logs.tar.xz, caches.tar.xz.NN."""
        sys.path.insert(0, str(HERE))
        from phases import phases

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
            with log.open(errors="replace") as lines:
                summary[f"phases of {log.parent.name}"] = phases(lines)
        if (ENVIRONMENT / "bin/runbook").exists():
            argv = [ENVIRONMENT / "bin/runbook", "status", HERE / self.book, "--json"]
            said = call([*argv, "--workspace", self.workspace], 10, env=environment()).stdout
            summary["status"] = json.loads(said) if said.startswith("{") else said
        (out / "summary.json").write_text(json.dumps(summary, indent=1))
        kept = [self.workspace.name] if self.workspace.exists() else []
        kept += [p.name for p in (STAGE / "gpu.csv", self.timeline) if p.exists()]
        weights = "--exclude=*.safetensors"
        tar = ["tar", "-C", STAGE, weights, "-cJf", out / "logs.tar.xz", *kept]
        call(tar, 20)
        if HOME.exists() and not self.options.no_caches:
            pack = f"tar -C {HOME} -cf - . | xz -T0 -1 | split -b {PIECE} -d - {out}/caches.tar.xz."
            call(["bash", "-c", pack], 30)


def call(
    argv: list[Any], limit: float, *, check: bool = False, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program; end it and its children when it takes longer."""
    words = [str(word) for word in argv]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said, _ = process.communicate()
        say(f"  {words[0]} was ended after {limit:.0f} s; it said: {said[-1500:]}")
        if check:
            raise Overdue(words[0]) from None
        return subprocess.CompletedProcess(words, -9, said)
    if process.returncode and (check or env is not None):
        say(f"  {' '.join(words[:3])} exits {process.returncode}: {said[-3000:]}")
    if check and process.returncode:
        raise SystemExit(f"{words[0]} failed")
    return subprocess.CompletedProcess(words, process.returncode, said)


def environment() -> dict[str, str]:
    """That of this machine, with a home of its own, and NVLink multicast off in every library:
    it can put the GPUs of a shared host out of service."""
    return os.environ | {
        "HOME": str(HOME),
        "XDG_CACHE_HOME": str(HOME / ".cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(HOME / ".cache/torchinductor"),
        "PATH": f"{ENVIRONMENT}/bin:{os.environ['PATH']}",
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
    }


def site_packages(python: str) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([python, "-c", code], text=True).strip())


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


def last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")[:200]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=BOOKS)
    parser.add_argument("--parts", required=True, help="folder with part.00 ...")
    parser.add_argument("--out", required=True, help="folder for logs, summary and caches")
    parser.add_argument("--limit", type=float, default=570, help="seconds for all of it")
    parser.add_argument("--caches", help="folder with caches.tar.xz.00 ... of an earlier machine")
    parser.add_argument(
        "--set", action="append", default=[], help="an input of the book, key=value"
    )
    parser.add_argument("--run", action="append", default=[], help="a word more for `runbook run`")
    parser.add_argument("--words", type=int, default=20_000, help="words of the long question")
    parser.add_argument("--no-caches", action="store_true", help="do not bring caches back")
    options = parser.parse_args()
    STAGE.mkdir(parents=True, exist_ok=True)
    drive = Drive(options)
    with (STAGE / "gpu.csv").open("a") as samples:
        watch = subprocess.Popen(
            ["nvidia-smi", f"--query-gpu={SAMPLE}", "--format=csv,noheader", "-l", "5"],
            stdout=samples,
        )
    code = 1
    try:
        with drive.stage("environment"):
            drive.environment()
        if options.caches:
            with drive.stage("caches"):
                drive.caches()
        with drive.stage("checkpoint"):
            drive.write_checkpoint()
        with drive.stage("run"):
            code = drive.run()
        if code == 0:
            with drive.stage("ask"):
                drive.ask()
    except Overdue as overdue:
        say(f"{overdue} took too long")
    finally:
        watch.terminate()
        with drive.stage("report"):
            drive.report(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
