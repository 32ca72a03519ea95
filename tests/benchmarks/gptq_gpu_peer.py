"""llm-compressor's GPTQ routine on one GPU, on the checkpoint and captures of gptq_gpu.py.

    python tests/benchmarks/gptq_gpu_peer.py FOLDER [--experts N]

Run by gptq_gpu.py in the same run, with an interpreter that has llmcompressor 0.14. The routine is
called as its modifier does: Hessians hooked up module by module (each module gets its tokens in
one piece, its best case), then batches as large as its own estimate of the memory allows. Inputs
are at hand before the clock starts, reading and writing files is left out. Prints a JSON line for
each setting: seconds for its Hessians and for its quantisation, and its errors on held-out rows.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import time
from pathlib import Path

os.environ.setdefault("LOGURU_LEVEL", "ERROR")

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization
from llmcompressor.modifiers.gptq import gptq_quantize, helpers
from llmcompressor.modifiers.quantization.calibration import initialize_observer
from safetensors.torch import load_file

_launch = Path(__file__).parents[2] / "steps/mtp/retrofit/launch.py"
_spec = importlib.util.spec_from_file_location("mtp_launch", _launch)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_module.package()

from mtp_retrofit.calibration import HELD_MOST, HELD_SHARE, activate  # noqa: E402
from mtp_retrofit.source import Experts  # noqa: E402

BLOCK, DAMPING = 128, 0.1
OBSERVERS = {"imatrix": "imatrix_mse", "minmax": "memoryless_minmax"}


class Captures:
    """Tokens of each expert, grouped: rows for calibration and held-out rows."""

    def __init__(self, folder: Path) -> None:
        self.limit = json.loads((folder / "calibration.json").read_text())["limit"]
        parts = [load_file(path, "cuda") for path in sorted(folder.glob("tokens-*.safetensors"))]
        self.x, self.experts, self.weights = (
            torch.cat([part[name] for part in parts]) for name in ("x", "experts", "weights")
        )

    def inputs(self, expert: int, gate, up):
        """(x, input of the down projection) for calibration, and both for held-out rows."""
        rows, slots = (self.experts == expert).nonzero(as_tuple=True)
        held = min(HELD_MOST, len(rows) // HELD_SHARE)
        picked = torch.zeros(len(rows), dtype=torch.bool, device="cuda")
        if held:
            picked[: held * (len(rows) // held) : len(rows) // held] = True
        found = []
        for part in (~picked, picked):
            x, routing = self.x[rows[part]], self.weights[rows[part], slots[part]]
            found.append((x, activate(x @ gate.t(), x @ up.t(), routing, self.limit)))
        return found


def linear(weight, scheme):
    module = torch.nn.Linear(
        weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device="cuda"
    )
    module.weight.data = weight.clone()
    module.weight.requires_grad_(False)
    initialize_module_for_quantization(module, scheme)
    initialize_observer(module, "weight")
    return module


def seconds_since(began: float) -> float:
    torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def run(experts: Experts, captures: Captures, count: int, setting: str) -> dict[str, float]:
    args = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=128,
        actorder="static", observer=OBSERVERS[setting],
    )  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    hessians, counts, held = {}, {}, {}
    spent = 0.0
    for expert in range(count):
        named = list(experts.weights(expert).values())
        kept, out = captures.inputs(expert, *named[:2])
        for weight, side in zip(named, (0, 0, 1), strict=True):
            module, x = linear(weight, scheme), kept[side]
            torch.cuda.synchronize()
            began = time.perf_counter()
            h, n = helpers.make_empty_hessian(module), torch.zeros((), device="cuda")
            hessians[module], counts[module] = helpers.accumulate_hessian(x, module, h, n)
            if setting == "imatrix":  # what its gatherer's hook adds up
                module.weight_observer._imatrix_sum = x.float().pow(2).sum(0)
                module.weight_observer._imatrix_count = torch.tensor(len(x), device="cuda")
            spent += seconds_since(began)
            held[module] = (out[side], weight, len(x))
    modules = list(hessians)
    began = time.perf_counter()
    sizes = []
    for module in modules:
        module.weight_observer(module.weight)
    for batch in helpers.assign_batches(modules, "auto", BLOCK):
        found = [module.weight_observer.get_qparams() for module in batch]
        w, h, scale, zero, whole = helpers.prepare_batch(batch, found, hessians, counts)
        codes, *_ = gptq_quantize.quantize_weight(
            weights=w, hessians=h, scale=scale, zero_point=zero, global_scale=whole,
            quant_args=args, blocksize=BLOCK, percdamp=DAMPING,
        )  # fmt: skip
        helpers.update_batch_qparams(batch, codes, scale, zero, whole, args)
        sizes.append(len(batch))
    quantised = seconds_since(began)
    total = weighted = 0.0
    for module, (x, weight, tokens) in held.items():
        x = x.float()
        if len(x):
            lost = x @ (module.weight.float() - weight.float()).t()
            error = float(lost.norm() / (x @ weight.float().t()).norm())
            total, weighted = total + tokens, weighted + tokens * error
    return {
        "tensors": len(modules),
        "batches": sizes,
        "hessians": round(spent, 3),
        "quantise": round(quantised, 3),
        "seconds": round(spent + quantised, 3),
        "error": round(weighted / total, 6),
    }


def tidy() -> None:
    """Give back the memory of a run, whose modules and observers refer to each other."""
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=256)
    given = parser.parse_args()
    experts = Experts.open(given.folder / "upstream", "mtp.0.ffn.experts", torch.device("cuda"))
    captures = Captures(given.folder / "captures")
    for setting in OBSERVERS:
        run(experts, captures, 2, setting)  # compiles its kernels
        tidy()
        line = run(experts, captures, min(given.experts, experts.count), setting)
        print(json.dumps({"kind": "llmcompressor", "setting": setting, **line}), flush=True)
        tidy()


if __name__ == "__main__":
    main()
