"""One rank of a probe: all-reduces of several sizes, values compared, latency and bandwidth.

Run by the Python of the environment that will serve, one process a rank, of which this file is
all that it is given: it needs torch, and vLLM for the methods `custom` and `pcie_ipc`. It prints
one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from typing import Any

WARM_UP, ROUNDS, SERIES = 3, 10, 5
"""Rounds of a series, of which the quickest counts: what else runs only ever makes them slower."""
ELEMENT = 2
"""Bytes of a bfloat16, in which small whole numbers are exact."""
PERIOD = 7
HIDDEN, MOST_ROWS = 4096, 64
"""Of what FlashInfer's PCIe all-reduce is prepared for: columns, and rows of a decode step."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--meeting", required=True, help="a file that all ranks can write")
    parser.add_argument("--backend", choices=("nccl", "gloo"), required=True)
    parser.add_argument("--method", choices=("backend", "custom", "pcie_ipc"), default="backend")
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="bytes")
    parser.add_argument("--seconds", type=float, required=True, help="limit of one collective")
    return parser.parse_args()


def probe(given: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if given.backend == "nccl":
        device = torch.device("cuda", given.rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        given.backend,
        init_method=f"file://{given.meeting}",
        rank=given.rank,
        world_size=given.world,
        timeout=datetime.timedelta(seconds=given.seconds),
    )
    reduce = _backend(dist)
    if given.method == "custom":
        found = _custom(dist, device)
        if found is None:
            return {"unavailable": "vLLM does not offer its custom all-reduce on these GPUs"}
        reduce = found
    if given.method == "pcie_ipc":
        found = _pcie_ipc(torch, dist, device, given)
        if found is None:
            return {"unavailable": "this build has no PCIe all-reduce for these GPUs"}
        reduce = found
    sizes = [_measure(torch, dist, reduce, device, size, given) for size in given.sizes]
    dist.destroy_process_group()
    return {"torch": torch.__version__, "sizes": sizes}


def _backend(dist: Any) -> Callable[[Any], Any]:
    def reduce(tensor: Any) -> Any:
        dist.all_reduce(tensor)
        return tensor

    return reduce


def _custom(dist: Any, device: Any) -> Callable[[Any], Any] | None:
    """vLLM's own all-reduce over peer memory; None where it is not for these GPUs."""
    from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

    custom = CustomAllreduce(dist.new_group(backend="gloo"), device)
    if custom.disabled:
        return None

    def reduce(tensor: Any) -> Any:
        result = custom.custom_all_reduce(tensor)
        if result is None:  # too large for it: vLLM gives that to NCCL as well
            dist.all_reduce(tensor)
            return tensor
        return result

    return reduce


def _pcie_ipc(torch: Any, dist: Any, device: Any, given: Any) -> Callable[[Any], Any] | None:
    """FlashInfer's all-reduce over PCIe, through vLLM's wrapper of it, prepared as vLLM does before
    it captures graphs; None where the build or these GPUs have it not. Its ranks wait for each
    other without a limit of their own."""
    from pathlib import Path

    from vllm.distributed.device_communicators.flashinfer_pcie_ipc_all_reduce import (
        FlashInferPcieIpcAllReduce,
    )

    pcie = FlashInferPcieIpcAllReduce(
        group=dist.group.WORLD, tune_group=dist.new_group(backend="gloo"), device=device
    )
    if pcie.disabled:
        return None
    rows = sorted(
        {size // ELEMENT // HIDDEN for size in given.sizes if size % (ELEMENT * HIDDEN) == 0}
    )
    pcie.setup(
        hidden_dim=HIDDEN,
        dtype=torch.bfloat16,
        capture_sizes=[count for count in rows if count <= MOST_ROWS] or [1],
        tune_cache=Path(given.meeting).with_name("tuned.json"),
    )

    def reduce(tensor: Any) -> Any:
        if tensor.numel() % HIDDEN == 0:
            as_rows = tensor.view(-1, HIDDEN)
            if len(as_rows) <= MOST_ROWS and pcie.should_use(as_rows):
                return pcie.all_reduce(as_rows).view(-1)
        dist.all_reduce(tensor)  # as in vLLM: what it does not take goes to NCCL
        return tensor

    return reduce


def _measure(
    torch: Any, dist: Any, reduce: Callable[[Any], Any], device: Any, size: int, given: Any
) -> dict[str, Any]:
    count = size // ELEMENT
    pattern = (torch.arange(count, device=device) % PERIOD + 1).to(torch.bfloat16)
    expected = pattern * (given.world * (given.world + 1) // 2)

    def once() -> Any:
        return reduce(pattern * (given.rank + 1))

    def settled() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    wrong = 0
    for _ in range(WARM_UP):
        wrong = max(wrong, int((once() != expected).sum().item()))
    series = []
    for _ in range(SERIES):
        dist.barrier()
        began = settled()
        for _ in range(ROUNDS):
            last = once()
        series.append((settled() - began) / ROUNDS)
        wrong = max(wrong, int((last != expected).sum().item()))
    seconds = min(series)
    # What each link must carry for it, as NCCL's own tests count.
    moved = 2 * (given.world - 1) / given.world * size
    return {
        "bytes": size,
        "seconds": seconds,
        "gb_per_second": moved / seconds / 1e9,
        "wrong": wrong,
    }


if __name__ == "__main__":
    print(json.dumps(probe(arguments())), flush=True)
    sys.exit(0)
