"""What it takes to turn a full-size block's rows into moments as they come, and what that loses.

    python tests/benchmarks/capture.py FOLDER [--tokens N] [--rows R]

Writes an upstream-style checkpoint and synthetic captures as gptq_gpu.py does (a GPU makes them),
streams the captures as the capture's plugin does, in forward passes of R tokens on the CPU, then
quantises all experts on the GPU from the moments and from the tokens. Prints JSON lines: seconds,
memory and bytes of the stream, and how far the two results are apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import gptq_gpu
import torch
from safetensors.torch import load_file


def package() -> None:
    spec = importlib.util.spec_from_file_location("launch", gptq_gpu.LAUNCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.package()


def memory() -> int:
    """Bytes of this process that are no file's."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024


def stream(source: Path, captures: Path, out: Path, rows: int) -> None:
    package()
    from mtp_retrofit.source import Experts
    from mtp_retrofit.stream import Stream

    out.mkdir()
    about = json.loads((captures / "calibration.json").read_text())
    parts = [load_file(path) for path in sorted(captures.glob("tokens-*"))]
    taken = [torch.cat([part[name] for part in parts]) for name in ("x", "experts", "weights")]
    del parts
    before, most = memory(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.2):
            most = max(most, memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, busy = time.perf_counter(), time.process_time()
    streaming = Stream(Experts.open(source, gptq_gpu.PREFIX), about["limit"], out)
    for part in zip(*(t.split(rows) for t in taken), strict=True):
        streaming.add(*part)
    added = time.perf_counter()
    counts = streaming.finish()
    (out / "calibration.json").write_text(json.dumps({**about, "kind": "moments"}))
    done.set()
    watcher.join()
    gptq_gpu.say(
        kind="stream",
        tokens=streaming.tokens,
        pairs=sum(counts),
        experts=len(counts),
        threads=torch.get_num_threads(),
        adding=round(added - began, 1),
        finishing=round(time.perf_counter() - added, 1),
        processor_seconds=round(time.process_time() - busy, 1),
        memory_gb=round((most - before) / 1e9, 2),
        disk_gb=round(sum(p.stat().st_size for p in out.iterdir()) / 1e9, 2),
    )


def quantise(folder: Path, kind: str) -> None:
    command = [sys.executable, str(gptq_gpu.LAUNCH), "quantise", "--seconds"]
    command += ["--checkpoint", str(folder / "checkpoint"), "--calibration", str(folder / kind)]
    command += ["--out", str(folder / f"out-{kind}")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    summary = {k: v for k, v in lines[-2]["summary"].items() if not isinstance(v, list)}
    gptq_gpu.say(kind="quantised", of=kind, seconds=lines[-1]["seconds"], **summary)


def compare(folder: Path) -> None:
    manifests = [
        json.loads((folder / f"out-{kind}" / "manifest.json").read_text())["tensors"]
        for kind in ("tokens", "moments")
    ]
    apart = [
        abs(other["error"] / one["error"] - 1)
        for one, other in zip(*(m.values() for m in manifests), strict=True)
        if one["error"]
    ]
    words, same = 0, 0
    for path in sorted((folder / "out-tokens").glob("expert-*"))[::16]:
        one, two = load_file(path), load_file(folder / "out-moments" / path.name)
        for name in (n for n in one if n.endswith("packed")):
            words += one[name].numel()
            same += int((one[name] == two[name]).sum())
    gptq_gpu.say(
        kind="difference",
        tensors=len(apart),
        error_most=max(apart),
        error_mean=sum(apart) / len(apart),
        equal_words=round(same / words, 4),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=473_000)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--rows", type=int, default=27)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--stream", action="store_true", help="only this, in a clean process")
    given = parser.parse_args()
    folder = given.folder
    if given.stream:
        stream(folder / "checkpoint", folder / "tokens", folder / "moments", given.rows)
        return
    for name in ("checkpoint", "tokens", "moments", "out-tokens", "out-moments"):
        shutil.rmtree(folder / name, ignore_errors=True)
    gptq_gpu.checkpoint(folder / "checkpoint", given.experts, given.seed)
    gptq_gpu.captures(folder / "tokens", given.experts, given.tokens, given.seed)
    subprocess.run([sys.executable, *sys.argv, "--stream"], check=True)
    for kind in ("tokens", "moments"):
        quantise(folder, kind)
    compare(folder)


if __name__ == "__main__":
    main()
