"""Times one GPTQ implementation on one expert; run by gptq.py in that implementation's own
environment. Reads the tensors that gptq.py wrote and prints one JSON line for each repeat.

The peers are called at the level of their routines, in the order of their own pipelines: their
loaders do not reach the MTP block. Each gets the captured tokens in one piece, its best case.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LOGURU_LEVEL", "ERROR")

import torch

sys.path.insert(0, str(Path(__file__).parent))
from gptq_data import NAMES, Expert

GROUP = 128


class Stored:
    """An expert as gptq.py wrote it, with the interface of `Expert`."""

    def __init__(self, path: str) -> None:
        self.__dict__.update(torch.load(path, weights_only=True))

    inputs = Expert.inputs
    error = Expert.error


def stored_weights(codes, scale):
    rows, columns = codes.shape
    grouped = codes.view(rows, columns // GROUP, GROUP).float()
    return (grouped * scale.to(torch.bfloat16).float().unsqueeze(-1)).view(rows, columns)


def run_ours(data, setting):
    from mtp_retrofit.gptq import Options, quantise
    from mtp_retrofit.hessian import Moments, shrink

    options = {
        "default": Options(),
        "signed": Options(signed=True),
        "as llm-compressor": Options(shrink=False, damping=0.1, scale="absmax"),
    }[setting]
    results = {}
    for names in (("w1", "w3"), ("w2",)):
        x = data.inputs(names[0])
        moments = Moments.empty(x.shape[1])
        moments.add(x)
        h = moments.hessian()
        if options.shrink:
            shrink(h, moments)
        w = torch.cat([data.w[n] for n in names])
        done = quantise(w[None], h[None], options)
        sizes = [len(data.w[n]) for n in names]
        for name, codes, scales in zip(
            names, done.codes[0].split(sizes), done.scales[0].split(sizes), strict=True
        ):
            results[name] = (codes, scales)
    return lambda: {n: stored_weights(*r) for n, r in results.items()}


def run_llmcompressor(data, setting):
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.initialize import (
        initialize_module_for_quantization,
    )
    from llmcompressor.modifiers.gptq import gptq_quantize, helpers
    from llmcompressor.modifiers.quantization.calibration import initialize_observer

    observer = {"imatrix": "imatrix_mse", "minmax": "memoryless_minmax"}[setting]
    args = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP,
        actorder="static", observer=observer,
    )  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    modules, hessians, counts = {}, {}, {}
    for name in NAMES:
        w = data.w[name]
        module = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
        module.weight.data = w.clone()
        module.weight.requires_grad_(False)
        initialize_module_for_quantization(module, scheme)
        initialize_observer(module, "weight")
        modules[name] = module
        x = data.inputs(name)
        h, n = helpers.make_empty_hessian(module), torch.zeros(())
        hessians[module], counts[module] = helpers.accumulate_hessian(x, module, h, n)
        if setting == "imatrix":  # what its gatherer's hook adds up
            module.weight_observer._imatrix_sum = x.float().pow(2).sum(0)
            module.weight_observer._imatrix_count = torch.tensor(len(x))
    for names in (("w1", "w3"), ("w2",)):
        batch = [modules[n] for n in names]
        found = []
        for module in batch:
            module.weight_observer(module.weight)
            found.append(module.weight_observer.get_qparams())
        with torch.no_grad():
            w, h, scale, zero, whole = helpers.prepare_batch(batch, found, hessians, counts)
            codes, *_ = gptq_quantize.quantize_weight(
                weights=w, hessians=h, scale=scale, zero_point=zero, global_scale=whole,
                quant_args=args, blocksize=128, percdamp=0.1,
            )  # fmt: skip
            helpers.update_batch_qparams(batch, codes, scale, zero, whole, args)

    def weights():
        made = {}
        for name, module in modules.items():
            state = {"weight": module.weight.data, "weight_scale": module.weight_scale.data}
            zero = getattr(module, "weight_zero_point", None)
            if zero is not None:
                state["weight_zero_point"] = zero.data
            packed = PackedQuantizationCompressor.compress(state, scheme)
            codes = unpack_from_int32(packed["weight_packed"], 4, packed["weight_shape"])
            made[name] = stored_weights(codes, packed["weight_scale"])
        return made

    return weights


def run_gptqmodel(data, setting):
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ, SharedHessianFactorCache

    order, damping = {
        "default": ({"act_group_aware": True, "desc_act": False}, 0.05),
        "static": ({"act_group_aware": False, "desc_act": True, "static_groups": True}, 0.1),
    }[setting]
    tasks = {}
    for name in NAMES:
        w = data.w[name]
        module = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.bfloat16)
        module.weight.data = w.clone()
        config = QuantizeConfig(
            bits=4, group_size=GROUP, sym=True, damp_percent=damping, offload_to_disk=False,
            fallback=None, mse=0.0, **order,
        )  # fmt: skip
        task = GPTQ(module, config)
        task.quantizer.configure(perchannel=True)
        if name == "w3":  # their path for modules that share their input
            task.adopt_hessian_from(tasks["w1"])
        else:
            task.add_batch(data.inputs(name), None)
            task.materialize_global_hessian()
        tasks[name] = task
    cache = SharedHessianFactorCache(0, "c", "w1")
    results = {}
    for name in NAMES:
        if name != "w2":
            tasks[name].attach_shared_hessian_cache(cache)
        results[name] = tasks[name].quantize(blocksize=128)[:2]

    def weights():
        made = {}
        for name, (w, scale) in results.items():
            grouped = w.float().view(len(w), -1, GROUP) / scale.float().unsqueeze(-1)
            codes = torch.round(grouped).clamp(-8, 7).view_as(w)
            made[name] = stored_weights(codes, scale)
        return made

    return weights


RUN = {"ours": run_ours, "llmcompressor": run_llmcompressor, "gptqmodel": run_gptqmodel}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--impl", choices=RUN, required=True)
    parser.add_argument("--settings", required=True, help="comma-separated")
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.impl == "ours":
        launch = Path(__file__).parents[2] / "steps/mtp/retrofit/launch.py"
        spec = importlib.util.spec_from_file_location("mtp_launch", launch)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.package()
    data = Stored(given.data)
    run = RUN[given.impl]
    settings = given.settings.split(",")
    run(Expert(300, d=256, f=256, held=8), settings[0])  # imports, thread pools, compiled kernels
    for repeat in range(given.repeat):
        for setting in settings:
            wall, cpu = time.perf_counter(), time.process_time()
            weights = run(data, setting)
            line = {
                "impl": given.impl,
                "setting": setting,
                "repeat": repeat,
                "seconds": round(time.perf_counter() - wall, 3),
                "cpu_seconds": round(time.process_time() - cpu, 3),
            }
            if repeat == 0:
                line["error"] = round(data.error(weights()), 5)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
