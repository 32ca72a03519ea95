"""All 768 routed-expert tensors of a full-size MTP block on one GPU, with synthetic captures.

    python tests/benchmarks/gptq_gpu.py FOLDER [--tokens N] [--experts N] [--batch B] [--repeat R]
        [--llmcompressor PYTHON]

Writes an upstream-style checkpoint (FP4 experts, E8M0 scales) and captures of the published size
(473,000 tokens, top 6 of 256, popularity log-normal with sigma 1.07) into FOLDER, then runs the
quantiser's program and prints JSON lines: the machine's ceilings, and seconds by stage beside the
bounds that its arithmetic and bytes give. With `--llmcompressor`, an interpreter that has it,
its own routine does the same experts on the same device (gptq_gpu_peer.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

D, F, TOP = 4096, 2048, 6
LAUNCH = Path(__file__).parents[2] / "steps/mtp/retrofit/launch.py"
PREFIX = "mtp.0.ffn.experts"


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def checkpoint(folder: Path, experts: int, seed: int) -> None:
    generator = torch.Generator("cuda").manual_seed(seed)
    folder.mkdir(parents=True)
    index = {}
    for shard in range(0, experts, 32):
        tensors = {}
        for e in range(shard, min(shard + 32, experts)):
            for leaf, (rows, columns) in {"w1": (F, D), "w3": (F, D), "w2": (D, F)}.items():
                normal = torch.randn(rows, columns, device="cuda", generator=generator)
                grouped = normal.view(rows, columns // 32, 32)
                exponent = torch.floor(torch.log2(grouped.abs().amax(-1))) - 2
                values = (grouped / torch.exp2(exponent).unsqueeze(-1)).clamp(-6, 6)
                middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], device="cuda")
                codes = torch.bucketize(values.abs(), middles) | ((values < 0).long() << 3)
                codes = codes.view(rows, columns).to(torch.uint8)
                name = f"{PREFIX}.{e}.{leaf}"
                packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
                tensors[f"{name}.weight"] = packed.view(torch.int8).cpu()
                scale = (exponent + 127 - 6).to(torch.uint8)  # weights of deviation 2^-6
                tensors[f"{name}.scale"] = scale.cpu().view(torch.float8_e8m0fnu)
        file = f"model-{shard:05}.safetensors"
        save_file(tensors, folder / file)
        index.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"hidden_size": D}))


def captures(folder: Path, experts: int, tokens: int, seed: int) -> list[int]:
    generator = torch.Generator("cuda").manual_seed(seed)
    folder.mkdir(parents=True)
    basis, _ = torch.linalg.qr(torch.randn(D, D, device="cuda", generator=generator))
    spectrum = 1 / (torch.arange(D, device="cuda") + 8.0)
    colour = (basis * (spectrum * D / spectrum.sum()).sqrt()).T
    popularity = torch.exp(1.07 * torch.randn(experts, device="cuda", generator=generator))
    counts = torch.zeros(experts, dtype=torch.long, device="cuda")
    for part, start in enumerate(range(0, tokens, 1 << 16)):
        n = min(1 << 16, tokens - start)
        x = torch.randn(n, D, device="cuda", generator=generator) @ colour
        x *= torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        chosen = torch.multinomial(popularity.expand(n, -1), min(TOP, experts), generator=generator)
        counts += torch.bincount(chosen.flatten(), minlength=experts)
        routing = 1.5 * torch.softmax(torch.randn(chosen.shape, device="cuda"), -1)
        save_file(
            {
                "x": x.bfloat16().cpu(),
                "experts": chosen.int().cpu(),
                "weights": routing.cpu(),
            },
            folder / f"tokens-{part:03}.safetensors",
        )
    about = {"kind": "tokens", "experts": experts, "limit": 10.0, "seed": seed}
    (folder / "calibration.json").write_text(json.dumps(about))
    return counts.tolist()


def rate(work: float, run, repeat: int = 10) -> float:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeat):
        run()
    torch.cuda.synchronize()
    return work * repeat / (time.perf_counter() - began)


def ceilings(folder: Path) -> dict[str, float]:
    a, b = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
    a16, b16 = a.bfloat16(), b.bfloat16()
    product = 2 * 8192**3
    torch.set_float32_matmul_precision("highest")
    fp32 = rate(product, lambda: a @ b, 3)
    torch.set_float32_matmul_precision("high")
    tf32 = rate(product, lambda: a @ b)
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    file = folder / "probe"
    data = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8).numpy().tobytes()
    began = time.perf_counter()
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    written = 1 / (time.perf_counter() - began)
    file.unlink()
    return {
        "bf16_tflops": rate(product, lambda: a16 @ b16) / 1e12,
        "tf32_tflops": tf32 / 1e12,
        "fp32_tflops": fp32 / 1e12,
        "copy_gb_s": rate(2 * source.numel(), lambda: target.copy_(source)) / 1e9,
        "disk_write_gib_s": written,
    }


def bounds(counts: list[int], top: dict[str, float]) -> dict[str, float]:
    """Least seconds by stage: products at the measured rates, elementwise work by its bytes."""
    pairs, experts = sum(counts), len(counts)
    moments = 2 * pairs * (D * D + F * F) * 0.625
    forward = 2 * pairs * D * 2 * F
    factor = experts * (D**3 + F**3) / 3
    feedback = experts * (2 * F * D * D + D * F * F)
    return {
        "moments": (moments + forward) / top["bf16_tflops"] / 1e12,
        "factor": factor / top["fp32_tflops"] / 1e12,
        "feedback": feedback / top["tf32_tflops"] / 1e12,
        "write": experts * 3 * (D * F / 2 + D * F / 64) / 2**30 / top["disk_write_gib_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=473_000)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--llmcompressor", help="its interpreter")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    checkpoint(given.folder / "upstream", given.experts, given.seed)
    counts = captures(given.folder / "captures", given.experts, given.tokens, given.seed)
    say(
        kind="data",
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        seconds=round(time.perf_counter() - began, 1),
        tokens_least=min(counts),
        tokens_mean=sum(counts) / len(counts),
        tokens_most=max(counts),
    )
    top = ceilings(given.folder)
    say(kind="ceilings", **{k: round(v, 2) for k, v in top.items()})
    say(kind="bounds", **{k: round(v, 3) for k, v in bounds(counts, top).items()})
    torch.cuda.empty_cache()
    for repeat in range(given.repeat):
        out = given.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, str(LAUNCH), "quantise", "--device", "cuda", "--seconds"]
        command += ["--checkpoint", str(given.folder / "upstream"), "--out", str(out)]
        command += ["--calibration", str(given.folder / "captures"), "--batch", str(given.batch)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - began
        if done.returncode:
            say(kind="failed", repeat=repeat, error=done.stderr[-2000:])
            continue
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        stages = lines[-1]["seconds"]
        say(kind="run", repeat=repeat, batch=given.batch, wall=round(wall, 2), seconds=stages)
        say(kind="summary", **lines[-2]["summary"])
    if given.llmcompressor:
        peer = [given.llmcompressor, str(Path(__file__).with_name("gptq_gpu_peer.py"))]
        done = subprocess.run([*peer, str(given.folder)], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            say(kind="failed", impl="llmcompressor", error=done.stderr[-2000:])


if __name__ == "__main__":
    main()
