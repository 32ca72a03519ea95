"""Seconds of each part of GPTQ for one batch of full-size experts on a GPU, and agreement of the
GPU's codes with the CPU's.

    python tests/benchmarks/gptq_stages.py [BATCH ...]
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import torch

_launch = Path(__file__).parents[2] / "steps/mtp/retrofit/launch.py"
_spec = importlib.util.spec_from_file_location("mtp_launch", _launch)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_module.package()

from mtp_retrofit import gptq, hessian  # noqa: E402
from mtp_retrofit.gptq import GROUP, Options  # noqa: E402


def timed(run):
    torch.cuda.synchronize()
    began = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    return result, round(time.perf_counter() - began, 4)


def problem(batch: int, rows: int, columns: int, tokens: int, device: str):
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(batch, tokens, columns, device=device, generator=generator)
    x *= torch.exp(0.5 * torch.randn(columns, device=device, generator=generator))
    w = torch.randn(batch, rows, columns, device=device, generator=generator) * 0.02
    return w.bfloat16(), x.mT @ x / tokens


def agreement() -> None:
    w, h = problem(2, 512, 1024, 3000, "cuda")
    for name in ("highest", "high"):
        torch.set_float32_matmul_precision(name)
        for options in (Options(), Options(signed=True), Options(order="none", scale="absmax")):
            on_gpu = gptq.quantise(w, h, options)
            on_cpu = gptq.quantise(w.cpu(), h.cpu(), options)
            differ = (on_gpu.codes.cpu() != on_cpu.codes).float().mean()
            loss = on_gpu.loss.cpu() / on_cpu.loss - 1
            line = {"precision": name, "codes_differ": float(differ), "loss": loss.tolist()}
            print(json.dumps({"kind": "agreement", "options": str(options), **line}), flush=True)


def stages(batch: int) -> None:
    torch.set_float32_matmul_precision("high")
    for rows, columns in ((4096, 4096), (4096, 2048)):
        w, h = problem(batch, rows, columns, 6000, "cuda")
        for attempt in range(2):
            seconds = {}
            moments = h.diagonal(dim1=1, dim2=2).clone()
            turned, seconds["turn"] = timed(lambda w=w: gptq._turned(w))
            scales, seconds["scales"] = timed(
                lambda t=turned, m=moments: gptq.choose_scales(t, m, Options())
            )
            order = moments.argsort(dim=-1)
            ordered, seconds["order"] = timed(
                lambda h=h, o=order: gptq._reordered(gptq._reordered(h, o, 0), o, 1)
            )
            (feed, pivots), seconds["factor"] = timed(lambda o=ordered: hessian.factor(o, 0.05))
            _, seconds["library"] = timed(
                lambda o=ordered: [torch.linalg.cholesky_ex(x) for x in o[:4]]
            )
            _, seconds["columns"] = timed(
                lambda t=turned, f=feed, p=pivots, s=scales, o=order: gptq._columns(
                    t, f, p, s, (o // GROUP).to(torch.int32)
                )
            )
            used = torch.cuda.max_memory_allocated() / 2**30
            line = {"batch": batch, "shape": [rows, columns], "attempt": attempt, "gib": used}
            print(json.dumps({"kind": "stages", **line, **seconds}), flush=True)
            del turned, scales, ordered, feed


if __name__ == "__main__":
    agreement()
    for given in map(int, sys.argv[1:] or ["16", "32"]):
        torch.cuda.empty_cache()
        stages(given)
