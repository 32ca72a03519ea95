"""The rehearsal against doing its last part by hand: install the same wheel, serve, ask once.

    python tests/benchmarks/rehearsal.py

Both begin without any cache, and both fetch from the package index as pip is configured. By hand
starts from what the rehearsal has made (the patched wheel, the mended checkpoint) and leaves out
preflight, toolkit, patching, weights and the smoke test. Prints a JSON line for each step of the
rehearsal and one with the ratio; the goal is 1.3.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.resources import files
from pathlib import Path
from typing import Any

from runbook.steps.common.packages import indexes

PROGRAM = [sys.executable, "-m", "runbook"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(folder: Path) -> dict[str, str]:
    """An empty home, so that nothing is cached."""
    folder.mkdir()
    return {
        **os.environ,
        "HOME": str(folder),
        "UV_CACHE_DIR": str(folder / "uv"),
        "PIP_CACHE_DIR": str(folder / "pip"),
    }


def rehearse(folder: Path) -> tuple[float, dict[str, Any]]:
    env = environment(folder) | {"RUNBOOK_PORT": str(free_port())}
    begin = time.perf_counter()
    process = subprocess.run(
        [*PROGRAM, "run", "rehearsal", "--json"], env=env, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - begin
    answer = json.loads(process.stdout.splitlines()[-1])
    if not answer["ok"]:
        sys.exit(json.dumps(answer["error"], indent=1))
    for step in answer["steps"]:
        print(json.dumps({"step": step["id"], "seconds": step.get("seconds")}), flush=True)
    return seconds, answer | {"env": env}


def by_hand(folder: Path, answer: dict[str, Any]) -> float:
    """The commands that a person would type."""
    env = environment(folder)
    state = Path(answer["workspace"]) / "serve" / "state.json"
    spec = json.loads(state.read_text())["spec"]
    lock = files("runbook.env") / "vllm-0.32.0-cpu.requirements.txt"
    port = free_port()
    words = [str(port) if word == str(spec["port"]) else word for word in spec["argv"][1:]]
    index = indexes.pip_settings()
    uv = [sys.executable, "-m", "uv", "--quiet"]
    options = indexes.uv_index_options(index)
    more = indexes.uv_environment(index, os.environ)
    begin = time.perf_counter()
    venv = folder / "venv"
    python = venv / "bin" / "python"
    base = f"{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([*uv, "venv", "--python", base, venv], env=env, check=True)
    install = [*uv, "pip", "install", "--python", python, "--no-deps", *options]
    subprocess.run([*install, "-r", str(lock)], env=env | more, check=True)
    subprocess.run([*install, answer["outputs"]["build"]["wheel"]], env=env | more, check=True)
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            [venv / "bin" / "vllm", *words],
            env=env | spec["env"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        ask(port, server)
        return time.perf_counter() - begin
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait()


def ask(port: int, server: subprocess.Popen[bytes]) -> None:
    body = {"model": "rehearsal", "messages": [{"role": "user", "content": "ping"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                assert "rehearsal model" in response.read().decode()
                return
        except urllib.error.URLError:
            if server.poll() is not None:
                sys.exit("the server that was started by hand has died")
            time.sleep(0.2)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        ours, answer = rehearse(folder / "rehearsal")
        stop = [*PROGRAM, "destroy", "rehearsal", "serve", "publish", "--yes"]
        state = (Path(answer["workspace"]) / "serve" / "state.json").read_bytes()
        subprocess.run(stop, env=answer["env"], check=True, stdout=subprocess.DEVNULL)
        (Path(answer["workspace"]) / "serve").mkdir(exist_ok=True)
        (Path(answer["workspace"]) / "serve" / "state.json").write_bytes(state)
        theirs = by_hand(folder / "by-hand", answer)
    finally:
        shutil.rmtree(folder)
    line = {
        "benchmark": "rehearsal",
        "seconds": round(ours, 1),
        "by_hand_seconds": round(theirs, 1),
    }
    print(json.dumps(line | {"ratio": round(ours / theirs, 2)}))


if __name__ == "__main__":
    main()
