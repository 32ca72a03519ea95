"""A stripped base, the upstream block and quantised experts become a checkpoint without faults."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from runbook.steps.checkpoint.checkpoint import open_folder
from runbook.steps.checkpoint.lint import lint
from runbook.steps.mtp.assemble.assembly import SHARD, AssemblyError, assemble
from tests.steps.checkpoint.drafts import dspark
from tests.steps.mtp import tiny
from tests.steps.mtp.defects import V22, V33, truncate

PREFIX = "mtp.0.ffn.experts"


def quantised(folder: Path) -> Path:
    """Experts as the quantiser writes them."""
    folder.mkdir(parents=True)
    made = tiny.v4()
    for e in range(tiny.EXPERTS):
        names = [n for n in made.tensors if n.startswith(f"{PREFIX}.{e}.")]
        tiny.write_shard(folder / f"expert-{e:05}.safetensors", {n: made.tensors[n] for n in names})
    return folder


def sources(tmp_path: Path, compressor: str = "bf16") -> tuple[Path, Path, Path]:
    base = tiny.v4(mtp=False, compressor=compressor)
    group = base.config["quantization_config"]["config_groups"]["group_1"]
    group["weights"]["actorder"] = "static"
    return (
        base.write(tmp_path / "base"),
        tiny.v4("native").write(tmp_path / "upstream"),
        quantised(tmp_path / "quantised"),
    )


def values(folder: Path, name: str) -> np.ndarray:
    found = open_folder(folder)
    tensor = found.tensors[name]
    dtypes = {v: k for k, v in tiny.NAMES.items()}
    return np.frombuffer(found.read(tensor), dtypes[tensor.dtype]).reshape(tensor.shape)


def test_the_result_is_without_fault(tmp_path):
    base, upstream, experts = sources(tmp_path)
    assert "mtp_stripped" in {f.id for f in lint(base, V33)}
    left = assemble(base, upstream, experts, tmp_path / "out", V33)
    assert {f.id for f in left} == {"mtp_aliases"}
    for target in (V33, V22):
        assert not [f for f in lint(tmp_path / "out", target) if f.severity == "error"]
    config = open_folder(tmp_path / "out").config
    assert config["num_nextn_predict_layers"] == 1
    weights = config["quantization_config"]["config_groups"]["group_1"]["weights"]
    assert weights["actorder"] is None
    for shard in base.glob("*.safetensors"):
        assert (tmp_path / "out" / shard.name).samefile(shard)


def test_each_kind_of_tensor_is_what_it_should_be(tmp_path):
    base, upstream, experts = sources(tmp_path)
    assemble(base, upstream, experts, tmp_path / "out", V33)
    given, made = open_folder(upstream), open_folder(tmp_path / "out")
    for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
        name = f"mtp.0.attn.{name}"
        assert made.read(made.tensors[f"{name}.weight"]) == given.read(
            given.tensors[f"{name}.weight"]
        )
        assert made.tensors[f"{name}.weight_scale"].dtype == "F32"
        assert np.array_equal(
            values(tmp_path / "out", f"{name}.weight_scale"),
            values(upstream, f"{name}.scale").astype(np.float32),
        )
    for name in ("ffn.shared_experts.w2", "e_proj", "h_proj"):
        name = f"mtp.0.{name}"
        scale = values(upstream, f"{name}.scale").astype(np.float32)
        weight = values(upstream, f"{name}.weight").astype(np.float32)
        spread = np.kron(scale, np.ones((128, 128), np.float32))
        want = (weight * spread[: weight.shape[0], : weight.shape[1]]).astype(ml_dtypes.bfloat16)
        assert np.array_equal(values(tmp_path / "out", f"{name}.weight"), want)
        assert f"{name}.scale" not in made.index and f"{name}.weight_scale" not in made.index
    for name in ("hc_attn_fn", "ffn.gate.bias", "attn.attn_sink", "enorm.weight", "hc_head_fn"):
        name = f"mtp.0.{name}"
        assert made.tensors[name].dtype == given.tensors[name].dtype
        assert made.read(made.tensors[name]) == given.read(given.tensors[name])
    packed = tiny.v4().tensors[f"{PREFIX}.2.w3.weight_packed"]
    assert np.array_equal(values(tmp_path / "out", f"{PREFIX}.2.w3.weight_packed"), packed)
    blocks = [t for t in made.tensors.values() if t.shard == SHARD]
    assert len(blocks) == 4 * 3 * 3 + 2 * 5 + 3 + 2 + 19


def test_unignored_joint_projections_are_ignored(tmp_path):
    base, upstream, experts = sources(tmp_path)
    made = tiny.v4(mtp=False, compressor="bf16")
    quant = made.config["quantization_config"]
    quant["ignore"] = ["lm_head", "re:.*shared_experts.*"]
    quant["config_groups"]["group_0"]["targets"].append(r"re:.*\.(e_proj|h_proj)$")
    made.write(base)
    left = assemble(base, upstream, experts, tmp_path / "out", V33)
    assert not [f for f in left if f.severity == "error"]


def drop_expert(base: Path, upstream: Path, experts: Path) -> None:
    (experts / "expert-00003.safetensors").unlink()


def cut_expert(base: Path, upstream: Path, experts: Path) -> None:
    with (experts / "expert-00002.safetensors").open("r+b") as file:
        file.truncate(1000)


def strip_upstream(base: Path, upstream: Path, experts: Path) -> None:
    made = tiny.v4("native")
    made.pop("mtp.0.hnorm.weight")
    made.write(upstream)


def foreign(base: Path, upstream: Path, experts: Path) -> None:
    config = upstream / "config.json"
    config.write_text('{"architectures": ["LlamaForCausalLM"]}')


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (drop_expert, f"{PREFIX}.3.w1"),
        (cut_expert, "expert-00002"),
        (strip_upstream, "mtp.0.hnorm.weight"),
        (foreign, "LlamaForCausalLM"),
        (lambda b, u, e: dspark().write(u), "DSpark"),
        (lambda b, u, e: tiny.v4(compressor="bf16").write(b), "already"),
        (lambda b, u, e: truncate(b), "cut off"),
    ],
)
def test_sources_that_do_not_fit(spoil, named, tmp_path):
    given = sources(tmp_path)
    spoil(*given)
    with pytest.raises(AssemblyError, match=named):
        assemble(*given, tmp_path / "out", V33)
    assert not (tmp_path / "out").exists()


CODE = """
import sys
from pathlib import Path
from runbook.steps.checkpoint.targets import Target
from runbook.steps.mtp.assemble.assembly import assemble
assemble(*map(Path, sys.argv[1:5]), Target("0.33.0"))
"""


@pytest.mark.harness
def test_killed_thirty_times_the_bytes_are_the_same(tmp_path):
    given = [str(p) for p in sources(tmp_path)]
    command = [sys.executable, "-c", CODE, *given]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    took = time.monotonic() - began
    random = np.random.default_rng(7)
    for _ in range(30):
        process = subprocess.Popen([*command, str(tmp_path / "out")])
        time.sleep(took * (0.3 + 0.7 * random.random()))
        process.kill()
        process.wait()
    subprocess.run([*command, str(tmp_path / "out")], check=True)
    want = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    found = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix != ".tmp"}
    assert found == want


def test_memory_does_not_grow_with_the_tensors(tmp_path):
    """300 MB are copied, and 64 MB dequantised, within 40 MB."""
    code = f"""
import os, resource, sys
from pathlib import Path
import numpy as np
from runbook.steps.mtp import dequantise, write
from runbook.steps.checkpoint.headers import Tensor
source, target = Path({str(tmp_path)!r}) / "big", Path({str(tmp_path)!r}) / "copy"
with source.open("wb") as file:
    file.truncate(300 << 20)
weight = Tensor("w", "big", "F8_E4M3", (8192, 8192), 0, 64 << 20)
scale = np.ones((64, 64), np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with source.open("rb") as a, target.open("wb") as b:
    write.copy_range(a.fileno(), b.fileno(), 0, 300 << 20, lambda n: None)
    read = lambda offset, length: os.pread(a.fileno(), length, offset)
    count = sum(map(len, dequantise.rows(read, weight, scale)))
assert count == 128 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000
