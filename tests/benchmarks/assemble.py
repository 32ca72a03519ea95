"""Assembles a full-size MTP block of DeepSeek-V4-Flash: seconds, bytes, and the peak of memory.

    python tests/benchmarks/assemble.py [--folder DIR]

Writes an upstream block (FP4 experts, FP8 attention) and quantised experts of the published
shapes, 3.6 GB and 3.4 GB of arbitrary bytes, and a base without the block; then assembles them in
a process of its own. Prints one JSON line: resident memory in MiB (the process's peak, and what it
was before, with everything imported), seconds, and beside them those of copying the same experts
with `cp`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runbook.steps.checkpoint.headers import ITEM_BITS, render
from runbook.steps.checkpoint.layout import layout

CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_attention_heads": 64,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "hc_mult": 4,
    "swiglu_limit": 10.0,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    "num_nextn_predict_layers": 1,
    "scale_fmt": "ue8m0",
    "expert_dtype": "fp4",
}
PLAIN = {"f32": "F32", "float": "BF16", "int": "I64"}
Entry = tuple[str, str, tuple[int, ...]]
NOISE = bytes(96 + byte % 16 for byte in os.urandom(1 << 20)) * 16
"""Numbers of a moderate size whether they are read as FP8 or as exponents."""
ASSEMBLE = """
import json, resource, sys, time
from pathlib import Path
from runbook.steps.mtp import dequantise
from runbook.steps.checkpoint.targets import Target
from runbook.steps.mtp.assemble.assembly import assemble
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, began = peak(), time.perf_counter()
assemble(*map(Path, sys.argv[1:5]), Target("0.33.0", "0.33.0"))
took = time.perf_counter() - began
print(json.dumps({"peak_mib": peak(), "before_mib": before, "seconds": took}))
"""


def nbytes(entry: Entry) -> int:
    count = ITEM_BITS[entry[1]] // 8
    for size in entry[2]:
        count *= size
    return count


def write_shard(path: Path, entries: list[Entry]) -> int:
    entries.sort(key=lambda e: -ITEM_BITS[e[1]])
    with path.open("wb") as file:
        file.write(render([(*e, nbytes(e)) for e in entries], {"format": "pt"}))
        left = total = sum(map(nbytes, entries))
        while left:
            left -= file.write(NOISE[:left])
    return total


def write_checkpoint(folder: Path, config: dict, entries: list[Entry]) -> int:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    where = {name: "model-00001-of-00001.safetensors" for name, *_ in entries}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return write_shard(folder / "model-00001-of-00001.safetensors", entries)


def upstream(folder: Path) -> int:
    wanted = layout(CONFIG)
    entries: list[Entry] = []
    for linear in (x for x in wanted.linears.values() if x.mtp):
        out, columns = linear.shape
        if linear.role == "expert":
            entries.append((f"{linear.base}.weight", "I8", (out, columns // 2)))
            entries.append((f"{linear.base}.scale", "F8_E8M0", (out, columns // 32)))
        else:
            entries.append((f"{linear.base}.weight", "F8_E4M3", (out, columns)))
            grid = (-(-out // 128), -(-columns // 128))
            entries.append((f"{linear.base}.scale", "F8_E8M0", grid))
    for plain in (x for x in wanted.plains.values() if x.mtp):
        entries.append((plain.name, PLAIN[plain.kind], plain.shape))
    return write_checkpoint(folder, CONFIG, entries)


def quantised(folder: Path) -> int:
    folder.mkdir()
    total = 0
    for expert in range(CONFIG["n_routed_experts"]):
        entries: list[Entry] = []
        for leaf, (out, columns) in {
            "w1": (2048, 4096),
            "w3": (2048, 4096),
            "w2": (4096, 2048),
        }.items():
            base = f"mtp.0.ffn.experts.{expert}.{leaf}"
            entries.append((f"{base}.weight_packed", "I32", (out, columns // 8)))
            entries.append((f"{base}.weight_scale", "BF16", (out, columns // 128)))
            entries.append((f"{base}.weight_shape", "I64", (2,)))
        total += write_shard(folder / f"expert-{expert:05}.safetensors", entries)
    return total


def base(folder: Path) -> None:
    """Without the block; of the rest, which is only linked, one tensor."""
    group = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_1": {
                "targets": [r"re:.*experts\.\d+\.(w1|w2|w3|gate_proj|up_proj|down_proj)$"],
                "format": "pack-quantized",
                "weights": {**group, "group_size": 128, "actorder": "static"},
            }
        },
    }
    config = {**CONFIG, "num_nextn_predict_layers": 0, "quantization_config": quantization}
    write_checkpoint(folder, config, [("norm.weight", "BF16", (4096,))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where 10 GB are free")
    folder = Path(tempfile.mkdtemp(prefix="assemble-", dir=parser.parse_args().folder))
    try:
        read = upstream(folder / "upstream")
        experts = quantised(folder / "quantised")
        base(folder / "base")
        os.sync()
        names = ["base", "upstream", "quantised", "assembled"]
        command = [sys.executable, "-c", ASSEMBLE, *(str(folder / name) for name in names)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        written = sum(p.stat().st_size for p in (folder / "assembled").glob("model-mtp-*"))
        shutil.rmtree(folder / "assembled")
        os.sync()
        began = time.perf_counter()
        subprocess.run(["cp", "-r", folder / "quantised", folder / "copied"], check=True)
        copied = time.perf_counter() - began
        line = {k: round(v, 2) for k, v in json.loads(done.stdout).items()}
        line |= {"upstream_bytes": read, "experts_bytes": experts, "written_bytes": written}
        print(json.dumps({"benchmark": "assemble", **line, "cp_seconds": round(copied, 2)}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
