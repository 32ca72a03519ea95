"""`launch.py quantise ...`: progress as JSON lines on standard output, errors as one line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from .calibration import Calibration
from .gptq import Options
from .quantise import run, warm_up
from .settings import Settings
from .source import Experts, InputError

THRESHOLD_SHARE = 64
"""With fewer tokens than columns / 64 an expert is rounded to nearest."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mtp-retrofit")
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("quantise", help="quantise the routed experts of an MTP block")
    verb.add_argument("--checkpoint", type=Path, required=True, help="upstream checkpoint")
    verb.add_argument("--prefix", default="mtp.0.ffn.experts", help="name of the experts")
    verb.add_argument("--calibration", type=Path, help="folder of the captures; none: round")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")
    verb.add_argument("--batch", type=int, default=0, help="experts at once; 0: by device")
    verb.add_argument("--threshold", type=int, default=-1, help="fewest tokens for GPTQ")
    verb.add_argument("--unrouted", choices=["error", "nearest"], default="error")
    verb.add_argument("--order", choices=["static", "none"], default="static")
    verb.add_argument("--damping", type=float, default=0.05)
    verb.add_argument("--scale", choices=["absmax", "mse", "weighted"], default="weighted")
    verb.add_argument("--no-shrink", action="store_true")
    verb.add_argument("--signed", action="store_true", help="allow negative scales")
    verb.add_argument("--seconds", action="store_true", help="print seconds by stage")
    given = parser.parse_args(argv)
    try:
        return _quantise(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _quantise(given: argparse.Namespace) -> int:
    name = given.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    options = Options(given.order, given.damping, not given.no_shrink, given.scale, given.signed)
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as side:
        warmed = side.submit(warm_up, device, options)
        experts = Experts.open(given.checkpoint, given.prefix, device)
        calibration = Calibration(given.calibration, device)
        warmed.result()
    loaded = time.perf_counter() - began
    width = int(experts.config.get("hidden_size", 4096))
    settings = Settings(
        options,
        given.threshold if given.threshold >= 0 else max(1, width // THRESHOLD_SHARE),
        given.batch or (16 if device.type == "cuda" else 1),
        given.unrouted,
    )
    start = time.monotonic()
    first = [-1]

    def report(done: int, total: int) -> None:
        if first[0] < 0:
            first[0] = done
        rate = (time.monotonic() - start) / max(1, done - first[0])
        left = rate * (total - done) if done > first[0] else None
        print(json.dumps({"done": done, "total": total, "seconds_left": left}), flush=True)

    made = run(experts, calibration, given.out, settings, report)
    print(json.dumps({"summary": made["summary"]}), flush=True)
    if given.seconds:
        stages = {"load": loaded, **made["seconds"], "all": time.perf_counter() - began}
        print(json.dumps({"seconds": {k: round(v, 3) for k, v in stages.items()}}), flush=True)
    return 0
