"""`runbook bench` beside `vllm bench serve`, in turn, on the same served model, in one run:

    python tests/benchmarks/bench_against_vllm.py BOOK --workspace FOLDER [--concurrency 1,4]

Run it with the Python that has runbook; the served vLLM's own Python runs vLLM's benchmark
(vllm.benchmarks.serve.main_async, which is what `vllm bench serve` calls), once imported and asked
again and again. It needs no network. Each round measures both, the one that begins changing. Both
send the prompts that runbook draws: in a round the same ones if the server caches no prefixes
(`enable_prefix_caching: false` in a profile file), so that it has the same work, else other ones of
the same length; then vLLM's benchmark has one answered from the cache, with which it warmed up.

`--sides vllm,vllm` or `runbook,runbook` measures a client beside itself: what the machine alone
makes of two equal measurements.

Prints JSON lines: each measurement, then for each concurrency the ratio first / second side of
tokens/s, mean and median TTFT and mean TPOT, as the median over the rounds of the ratio within a
round, with the interval that holds 95 % of its bootstrap, and the share of a core that each client
took while it measured.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from runbook.cli.added import recorded
from runbook.cli.target import Given, Target
from runbook.steps.measure import prompts
from runbook.steps.measure.measuring import SEED, Load, repetition, send
from runbook.steps.measure.served import Served, of_book

# Reads {arguments, prompts, output_length} a line, answers with one line of what `vllm bench serve`
# measures. It sends the prompts, lists of token ids, in place of those that it would draw, and
# keeps its own processor time whenever it reads the clock, from which its duration is.
PEER = """
import asyncio, json, sys, time
out = sys.stdout
sys.stdout = sys.stderr
import vllm.benchmarks.serve as serve
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser
except ImportError:
    from vllm.utils import FlexibleArgumentParser as Parser
class Clock:
    def __getattr__(self, name):
        return getattr(time, name)
    def perf_counter(self):
        spent.append(time.process_time())
        return time.perf_counter()
serve.time = Clock()
parser = Parser()
serve.add_cli_args(parser)
print("ready", file=out, flush=True)
for line in sys.stdin:
    given = json.loads(line)
    samples = [
        serve.SampleRequest(
            prompt=ids, prompt_len=len(ids), expected_output_len=given["output_length"]
        )
        for ids in given["prompts"]
    ]
    serve.get_samples = lambda args, tokenizer: samples
    spent = []
    told = asyncio.run(serve.main_async(parser.parse_args(given["arguments"])))
    kept = {k: v for k, v in told.items() if isinstance(v, (int, float, str))}
    print(json.dumps(kept | {"cpu": spent[-1] - spent[0]}), file=out, flush=True)
"""

FIGURES = ("output_tokens_per_second", "ttft_mean", "ttft_median", "tpot_mean")


class Peer:
    """vLLM's benchmark, in its own environment."""

    def __init__(self, served: Served, python: Path) -> None:
        self.served = served
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

    def measure(self, load: Load, number: int) -> dict[str, Any]:
        served, asked = self.served, load.asked
        made = prompts.requests(served, asked, load.requests, SEED + number)
        arguments = [
            "--backend", "openai", "--base-url", served.root, "--endpoint", "/v1/completions",
            "--model", str(served.folder), "--served-model-name", served.model,
            "--dataset-name", "random", "--ignore-eos",
            "--num-prompts", str(load.requests), "--max-concurrency", str(load.streams),
            # Opens its connections, as runbook does before it begins.
            "--num-warmups", str(load.warm_up), "--ready-check-timeout-sec", "0",
            "--temperature", "0", "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl,e2el",
        ]  # fmt: skip
        flags = served.about["flags"]
        if (mode := "--tokenizer-mode") in flags:
            arguments += [mode, flags[flags.index(mode) + 1]]
        given = {
            "arguments": arguments,
            "prompts": [json.loads(body)["prompt"] for _, body in made],
            "output_length": asked.output_length,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()
        told = json.loads(self._line())
        if told["completed"] != load.requests:
            raise SystemExit(f"vLLM's benchmark completed {told['completed']}: see --verbose")
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
        "seconds": round(told["seconds"], 3),
    }


def verdict(sides: list[str], pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Ratios first / second side."""
    chance = random.Random(0)
    told: dict[str, Any] = {"sides": sides}
    for name in FIGURES:
        ratios = [one[name] / other[name] for one, other in pairs]
        drawn = sorted(
            statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000)
        )
        told[name] = {
            "ratio": round(statistics.median(ratios), 4),
            "of_95_percent": [round(drawn[50], 4), round(drawn[1949], 4)],
            "medians": [
                round(statistics.median(p[side][name] for p in pairs), 5) for side in (0, 1)
            ],
        }
    told["client_cpu"] = [
        round(statistics.median(p[side]["cpu"] / p[side]["seconds"] for p in pairs), 4)
        for side in (0, 1)
    ]
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
    parser.add_argument("--sides", default="runbook,vllm")
    parser.add_argument("--python", type=Path, help="another than that of the vLLM that serves")
    parser.add_argument("--verbose", action="store_true", help="show what vLLM's benchmark says")
    options = parser.parse_args()
    served = of_book(recorded(Target("bench", Given(options.book, options.workspace))))
    asked = prompts.Asked("random", None, options.input_length, options.output_length, True, False)
    python = options.python or Path(served.about["program"]).resolve().parent / "python"
    sides = options.sides.split(",")
    alike = "--no-enable-prefix-caching" in served.about["flags"]
    peer = Peer(served, python)
    for streams in map(int, options.concurrency.split(",")):
        load = Load(asked, streams, options.requests * streams, 1, streams)
        send(served, prompts.requests(served, asked, streams, SEED - 1), streams)
        pairs = []
        for number in range(options.rounds):
            told = [{}, {}]
            for side in (0, 1) if number % 2 else (1, 0):
                seed = 1000 * streams + 2 * number + (0 if alike else side)
                measure = peer.measure if sides[side] == "vllm" else partial(ours, served)
                told[side] = measure(load, seed)
                print(json.dumps({"streams": streams, "by": sides[side], **told[side]}), flush=True)
            pairs.append((told[0], told[1]))
        print(
            json.dumps({"streams": streams, "rounds": len(pairs), **verdict(sides, pairs)}),
            flush=True,
        )
    peer.end()


if __name__ == "__main__":
    main()
