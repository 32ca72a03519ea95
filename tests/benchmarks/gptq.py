"""GPTQ of one full-size expert (w1, w3, w2) on the CPU, against llm-compressor and gptqmodel.

    python tests/benchmarks/gptq.py --ours PYTHON --llmcompressor PYTHON --gptqmodel PYTHON

Each PYTHON is the interpreter of an environment of its own: any with torch; llmcompressor 0.14;
gptqmodel 7.7. All get the same tensors (written once), seed, threads and device, in one run, the
repeats interleaved. Prints JSON lines: every measurement, then for each token count the ratios:
time is the least over the repeats, error is that of the whole expert on held-out tokens with
the weights that a compressed-tensors file would hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = {
    "llmcompressor": "imatrix,minmax",
    "gptqmodel": "static,default",
    "ours": "default,signed,as llm-compressor",
}
WRITE = """
import sys, torch
sys.path.insert(0, {here!r})
from gptq_data import Expert
data = Expert({tokens}, d={d}, f={f}, held={held})
torch.save(vars(data), {path!r})
"""


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def measure(python: str, impl: str, data: Path, threads: int) -> list[dict]:
    command = [python, str(HERE / "gptq_worker.py"), "--impl", impl, "--data", str(data)]
    command += ["--settings", SETTINGS[impl], "--threads", str(threads), "--repeat", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        say(kind="failed", impl=impl, error=done.stderr[-1500:])
        return []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ratios(tokens: int, lines: list[dict]) -> None:
    best: dict[tuple[str, str], dict[str, float]] = {}
    for line in lines:
        into = best.setdefault((line["impl"], line["setting"]), {})
        for key in ("seconds", "cpu_seconds"):
            into[key] = min(line[key], into.get(key, float("inf")))
        if "error" in line:
            into["error"] = line["error"]
    peers = {k: v for k, v in best.items() if k[0] != "ours"}
    if not peers:
        return
    least = min(v["error"] for v in peers.values())
    for (impl, setting), own in best.items():
        if impl != "ours":
            continue
        fields: dict[str, object] = {"error": own["error"], "seconds": own["seconds"]}
        fields["error_over_best_peer"] = round(own["error"] / least, 4)
        for (peer, its), theirs in peers.items():
            label = f"{peer} {its}"
            fields[f"faster_than {label}"] = round(theirs["seconds"] / own["seconds"], 2)
            fields[f"cpu_faster_than {label}"] = round(
                theirs["cpu_seconds"] / own["cpu_seconds"], 2
            )
        same = best.get(("llmcompressor", "minmax"))
        if setting == "as llm-compressor" and same:
            fields["error_over_theirs_at_equal_settings"] = round(own["error"] / same["error"], 4)
        say(kind="ratios", tokens=tokens, setting=setting, **fields)


def main() -> None:
    parser = argparse.ArgumentParser()
    for impl in SETTINGS:
        parser.add_argument(f"--{impl}", required=impl == "ours", help="its interpreter")
    parser.add_argument("--tokens", default="11086,430")
    parser.add_argument("--shape", default="4096x2048", help="DxF: inputs and rows of w1 and w3")
    parser.add_argument("--held", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    d, f = map(int, given.shape.split("x"))
    for tokens in map(int, given.tokens.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "expert.pt"
            code = WRITE.format(
                here=str(HERE), tokens=tokens, d=d, f=f, held=given.held, path=str(path)
            )
            subprocess.run([given.ours, "-c", code], check=True)
            lines = []
            for repeat in range(given.repeat):
                for impl in SETTINGS:
                    python = getattr(given, impl)
                    if python is None:
                        continue
                    for line in measure(python, impl, path, given.threads):
                        line["repeat"] = repeat
                        lines.append(line)
                        load = round(os.getloadavg()[0], 1)
                        say(kind="measured", tokens=tokens, shape=given.shape, load=load, **line)
            ratios(tokens, lines)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
