"""`runbook bench` beside `vllm bench serve`, in turn, on the same served model, in one run:

    python tests/benchmarks/bench_against_vllm.py BOOK --workspace FOLDER [--concurrency 1,4]

Run it with the Python that has runbook; the served vLLM's own Python runs vLLM's benchmark
(vllm.benchmarks.serve.main_async, which is what `vllm bench serve` calls), once imported and asked
again and again. It needs no network. Each round measures both, the one that begins changing, with
the same number of requests of as many random tokens, other tokens each time. `--tokenizer-mode` is
passed on to vLLM's benchmark.

Prints JSON lines: each measurement, then for each concurrency the ratio runbook / vLLM of tokens/s,
mean and median TTFT and mean TPOT, as the median over the rounds of the ratio within a round, with
the interval that holds 95 % of its bootstrap, and the share of a core that each client took.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from runbook.cli.added import recorded
from runbook.cli.target import Given, Target
from runbook.steps.measure import prompts
from runbook.steps.measure.measuring import SEED, Load, repetition, send
from runbook.steps.measure.served import Served, of_book

# Reads one list of arguments a line, answers with one line of what `vllm bench serve` measures.
PEER = """
import asyncio, argparse, json, sys, time
out = sys.stdout
sys.stdout = sys.stderr
from vllm.benchmarks.serve import add_cli_args, main_async
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser
except ImportError:
    from vllm.utils import FlexibleArgumentParser as Parser
parser = Parser()
add_cli_args(parser)
print("ready", file=out, flush=True)
for line in sys.stdin:
    args = parser.parse_args(json.loads(line))
    cpu = time.process_time()
    told = asyncio.run(main_async(args))
    told["cpu"] = time.process_time() - cpu
    kept = {k: v for k, v in told.items() if isinstance(v, (int, float, str))}
    print(json.dumps(kept), file=out, flush=True)
"""

FIGURES = ("output_tokens_per_second", "ttft_mean", "ttft_median", "tpot_mean")


class Peer:
    """vLLM's benchmark, in its own environment."""

    def __init__(self, served: Served, python: Path, mode: str | None) -> None:
        self.served, self.mode = served, mode
        self.process = subprocess.Popen(
            [str(python), "-c", PEER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr if "--verbose" in sys.argv else subprocess.DEVNULL,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"vLLM's benchmark ended with {self.process.wait()}: see --verbose")
        return line

    def measure(self, load: Load, seed: int) -> dict[str, Any]:
        served, asked = self.served, load.asked
        words = [
            "--backend", "openai", "--base-url", served.root, "--endpoint", "/v1/completions",
            "--model", str(served.folder), "--served-model-name", served.model,
            "--dataset-name", "random", "--random-input-len", str(asked.input_length),
            "--random-output-len", str(asked.output_length), "--ignore-eos",
            "--num-prompts", str(load.requests), "--max-concurrency", str(load.streams),
            "--num-warmups", str(load.warm_up), "--temperature", "0", "--seed", str(seed),
            "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl,e2el",
        ]  # fmt: skip
        if self.mode is not None:
            words += ["--tokenizer-mode", self.mode]
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        told = json.loads(self._line())
        return {
            "output_tokens_per_second": told["output_throughput"],
            "ttft_mean": told["mean_ttft_ms"] / 1000,
            "ttft_median": told["median_ttft_ms"] / 1000,
            "tpot_mean": told["mean_tpot_ms"] / 1000,
            "output_tokens": told["total_output_tokens"],
            "input_tokens": told["total_input_tokens"],
            "cpu": round(told["cpu"], 3),
            "seconds": round(told["duration"], 3),
        }

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def ours(served: Served, load: Load, number: int) -> dict[str, Any]:
    warm = prompts.requests(served, load.asked, load.warm_up, SEED - 1 - number)
    send(served, warm, load.streams)
    told = repetition(served, load, number)
    if told["failed"]:
        raise SystemExit(f"{told['failed']} requests failed: {told['errors'][0]}")
    return {
        "output_tokens_per_second": told["output_tokens_per_second"],
        "ttft_mean": told["ttft_seconds"]["mean"],
        "ttft_median": told["ttft_seconds"]["median"],
        "tpot_mean": told["tpot_seconds"]["mean"],
        "output_tokens": told["output_tokens"],
        "input_tokens": told["input_tokens"],
        "cpu": round(told["client_cpu"] * told["seconds"], 3),
        "seconds": told["seconds"],
    }


def verdict(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Ratios runbook / vLLM."""
    chance = random.Random(0)
    told: dict[str, Any] = {}
    for name in FIGURES:
        ratios = [one[name] / other[name] for one, other in pairs]
        drawn = sorted(
            statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000)
        )
        told[name] = {
            "ratio": round(statistics.median(ratios), 4),
            "of_95_percent": [round(drawn[50], 4), round(drawn[1949], 4)],
            "runbook": round(statistics.median(one[name] for one, _ in pairs), 5),
            "vllm": round(statistics.median(other[name] for _, other in pairs), 5),
        }
    for name, side in (("runbook", 0), ("vllm", 1)):
        shares = [pair[side]["cpu"] / pair[side]["seconds"] for pair in pairs]
        told[f"client_cpu_{name}"] = round(statistics.median(shares), 4)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book")
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--concurrency", default="1,4")
    parser.add_argument("--input-length", type=int, default=128)
    parser.add_argument("--output-length", type=int, default=128)
    parser.add_argument("--requests", type=int, default=4, help="of each stream in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokenizer-mode")
    parser.add_argument("--python", type=Path, help="another than that of the vLLM that serves")
    parser.add_argument("--verbose", action="store_true", help="show what vLLM's benchmark says")
    options = parser.parse_args()
    served = of_book(recorded(Target("bench", Given(options.book, options.workspace))))
    asked = prompts.Asked("random", None, options.input_length, options.output_length, True, False)
    python = options.python or Path(served.about["program"]).resolve().parent / "python"
    peer = Peer(served, python, options.tokenizer_mode)
    for streams in map(int, options.concurrency.split(",")):
        load = Load(asked, streams, options.requests * streams, 1, streams)
        pairs = []
        for number in range(options.rounds):
            told = {}
            for side in ("runbook", "vllm") if number % 2 else ("vllm", "runbook"):
                if side == "vllm":
                    told[side] = peer.measure(load, 1000 * streams + number)
                else:
                    told[side] = ours(served, load, 1000 * streams + number)
                print(json.dumps({"streams": streams, "by": side, **told[side]}), flush=True)
            pairs.append((told["runbook"], told["vllm"]))
        print(json.dumps({"streams": streams, "rounds": len(pairs), **verdict(pairs)}), flush=True)
    peer.end()


if __name__ == "__main__":
    main()
