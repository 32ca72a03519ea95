"""The driver: files, manifest, resumption after kills, bad inputs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mtp_retrofit import calibration as captures
from mtp_retrofit import formats, launch
from mtp_retrofit.calibration import Calibration
from mtp_retrofit.files import path_of
from mtp_retrofit.gptq import GROUP, Options
from mtp_retrofit.manifest import MANIFEST
from mtp_retrofit.quantise import run
from mtp_retrofit.settings import Settings
from mtp_retrofit.source import Experts, InputError
from mtp_retrofit.stream import Stream
from safetensors.torch import load_file, save_file

D, F, EXPERTS, TOKENS, TOP = 256, 128, 6, 900, 2
PREFIX = "mtp.0.ffn.experts"


def checkpoint(folder: Path, kind: str = "fp4") -> Path:
    g = torch.Generator().manual_seed(1)
    tensors = {}
    for e in range(EXPERTS):
        for leaf, (rows, columns) in {"w1": (F, D), "w3": (F, D), "w2": (D, F)}.items():
            name = f"{PREFIX}.{e}.{leaf}"
            if kind == "fp4":
                tensors[f"{name}.weight"] = torch.randint(
                    -128, 128, (rows, columns // 2), generator=g
                ).to(torch.int8)
                tensors[f"{name}.scale"] = (
                    torch.randint(119, 122, (rows, columns // 32), generator=g)
                    .to(torch.uint8)
                    .view(torch.float8_e8m0fnu)
                )
            else:
                w = torch.randn(rows, columns, generator=g) * 0.02
                tensors[f"{name}.weight"] = w.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"hidden_size": D}))
    return folder


def tokens(folder: Path, starve: tuple[int, ...] = (5,)) -> Path:
    """Captures in two files; the experts in `starve` get no token."""
    g = torch.Generator().manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    mix = torch.randn(D, D, generator=g) / D**0.5
    for part in range(2):
        x = (torch.randn(TOKENS // 2, D, generator=g) @ mix).bfloat16()
        scores = torch.rand(TOKENS // 2, EXPERTS, generator=g)
        scores[:, list(starve)] = -1
        weights, experts = scores.topk(TOP)
        save_file(
            {"x": x, "experts": experts.int(), "weights": weights},
            folder / f"tokens-{part}.safetensors",
        )
    about = {"kind": "tokens", "experts": EXPERTS, "limit": 10.0}
    (folder / "calibration.json").write_text(json.dumps(about))
    return folder


def job(**options) -> Settings:
    return Settings(Options(**options), threshold=4, batch=1, unrouted="nearest")


def quantised(tmp_path: Path, made: Settings | None = None, source: Path | None = None):
    experts = Experts.open(source or checkpoint(tmp_path / "source"), PREFIX)
    calibration = Calibration(tokens(tmp_path / "captures"), torch.device("cpu"))
    return run(experts, calibration, tmp_path / "out", made or job())


def files(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_files_and_manifest(tmp_path):
    manifest = quantised(tmp_path)
    assert manifest["summary"]["tensors"] == 3 * EXPERTS
    starved = [f"{PREFIX}.5.{leaf}" for leaf in ("w1", "w2", "w3")]
    assert manifest["summary"]["rounded_to_nearest"] == starved
    assert manifest["tensors"][starved[0]]["tokens"] == 0
    assert manifest["options"]["signed"] is False
    assert manifest["summary"]["error"] < 0.9 * manifest["summary"]["error_rtn"]
    held = sum(
        min(captures.HELD_MOST, n // captures.HELD_SHARE) for n in _routed(tmp_path / "captures")
    )
    counted = sum(manifest["tensors"][f"{PREFIX}.{e}.w1"]["tokens"] for e in range(EXPERTS))
    assert counted + held == TOKENS * TOP
    stored = load_file(path_of(tmp_path / "out", 2))
    assert len(stored) == 9
    for leaf, shape in {"w1": (F, D), "w3": (F, D), "w2": (D, F)}.items():
        name = f"{PREFIX}.2.{leaf}"
        words, scale = stored[f"{name}.weight_packed"], stored[f"{name}.weight_scale"]
        assert words.dtype == torch.int32 and words.shape == (shape[0], shape[1] // 8)
        assert scale.dtype == torch.bfloat16 and scale.shape == (shape[0], shape[1] // GROUP)
        assert stored[f"{name}.weight_shape"].tolist() == list(shape)
        source = Experts.open(tmp_path / "source", PREFIX).weights(2)[name].float()
        grouped = formats.unpack(words).view(shape[0], -1, GROUP).float()
        again = (grouped * scale.float().unsqueeze(-1)).view(shape)
        assert float((again - source).norm() / source.norm()) < 0.2
        seen = hashlib.sha256(words.numpy().tobytes())
        seen.update(scale.view(torch.uint8).numpy().tobytes())
        assert manifest["tensors"][name]["sha256"] == seen.hexdigest()


def _routed(folder: Path) -> list[int]:
    ids = torch.cat([load_file(p)["experts"] for p in sorted(folder.glob("tokens-*"))])
    return torch.bincount(ids.flatten(), minlength=EXPERTS).tolist()


def test_the_library_decompresses_each_tensor(tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor as P
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    quantised(tmp_path, job(signed=True))
    args = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    for expert in range(EXPERTS):
        stored = load_file(path_of(tmp_path / "out", expert))
        for name in {n.rpartition(".")[0] for n in stored}:
            parts = {k: stored[f"{name}.{k}"] for k in
                     ("weight_packed", "weight_scale", "weight_shape")}  # fmt: skip
            codes = formats.unpack(parts["weight_packed"])
            grouped = codes.view(codes.shape[0], -1, GROUP).float()
            want = (grouped * parts["weight_scale"].float().unsqueeze(-1)).view(codes.shape)
            assert torch.equal(P.decompress(dict(parts), scheme)["weight"], want.bfloat16())


def test_moments_give_what_their_tokens_give(tmp_path):
    manifest = quantised(tmp_path)
    source = Experts.open(tmp_path / "source", PREFIX)
    folder = tmp_path / "moments"
    folder.mkdir()
    stream = Stream(source, 10.0, folder)
    for path in sorted((tmp_path / "captures").glob("tokens-*")):
        stored = load_file(path)
        stream.add(stored["x"], stored["experts"], stored["weights"])
    stream.finish()
    about = {"kind": "moments", "experts": EXPERTS, "limit": 10.0}
    (folder / "calibration.json").write_text(json.dumps(about))
    again = run(source, Calibration(folder, torch.device("cpu")), tmp_path / "out2", job())
    for e in range(EXPERTS):
        one, two = (load_file(path_of(tmp_path / o, e)) for o in ("out", "out2"))
        for name, tensor in one.items():
            assert (tensor != two[name]).float().mean() < 0.01, name
    for name, record in manifest["tensors"].items():
        assert again["tensors"][name]["tokens"] == record["tokens"]
        if record["error"] is None:
            assert again["tensors"][name]["error"] is None
        else:
            assert abs(again["tensors"][name]["error"] / record["error"] - 1) < 1e-3


def test_experts_without_a_token_are_an_error_unless_wanted(tmp_path):
    experts = Experts.open(checkpoint(tmp_path / "source"), PREFIX)
    calibration = Calibration(tokens(tmp_path / "captures"), torch.device("cpu"))
    with pytest.raises(InputError, match=rf"{PREFIX}\.5\.w1: .*unrouted: nearest"):
        run(experts, calibration, tmp_path / "out", Settings(Options(), 4, 1))
    assert not (tmp_path / "out").exists()
    starved = Calibration(tokens(tmp_path / "other", (1, 5)), torch.device("cpu"))
    with pytest.raises(InputError, match=rf"{PREFIX}\.1\.w1 \(nor to 1 others of 6\)"):
        run(experts, starved, tmp_path / "out", Settings(Options(), 4, 1))
    made = run(experts, starved, tmp_path / "out", job())
    assert made["unrouted"] == "nearest"
    assert made["summary"]["unrouted"] == [f"{PREFIX}.1", f"{PREFIX}.5"]
    nothing = Calibration(None, torch.device("cpu"))
    none = run(experts, nothing, tmp_path / "none", Settings(Options(), 4, 1))
    assert none["summary"]["unrouted"] == []
    assert len(none["summary"]["rounded_to_nearest"]) == 3 * EXPERTS


def test_a_second_run_does_nothing_and_other_options_all(tmp_path):
    quantised(tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("expert*")}
    quantised(tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("expert*")} == before
    quantised(tmp_path, job(damping=0.2))
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("expert*")}
    assert all(after[n] != t for n, t in before.items())


@pytest.mark.parametrize("batch", [1, 4])
def test_what_is_missing_is_made_again_to_the_byte(batch, tmp_path):
    made = Settings(Options(), 4, batch, "nearest")
    quantised(tmp_path, made)
    before = files(tmp_path / "out")
    path_of(tmp_path / "out", 3).unlink()
    path_of(tmp_path / "out", 1).write_bytes(b"torn")
    (tmp_path / "out" / MANIFEST).unlink()
    quantised(tmp_path, made)
    assert files(tmp_path / "out") == before


@pytest.mark.e2e
def test_killed_thirty_times_the_bytes_are_the_same(tmp_path):
    source, taken = checkpoint(tmp_path / "source"), tokens(tmp_path / "captures")
    command = [sys.executable, launch.__file__, "quantise", "--checkpoint", str(source)]
    command += ["--calibration", str(taken), "--device", "cpu", "--threshold", "4"]
    command += ["--unrouted", "nearest"]
    began = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    took = time.monotonic() - began
    torch.manual_seed(3)
    killed = 0
    while killed < 30:
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")], stdout=subprocess.DEVNULL
        )
        time.sleep(took * (0.5 + 0.5 * float(torch.rand(()))))  # the first half is imports
        if process.poll() is None:
            process.kill()
        process.wait()
        killed += 1
        if (tmp_path / "out" / MANIFEST).exists():  # complete: take some away again
            for path in list((tmp_path / "out").iterdir())[::2]:
                path.unlink()
    subprocess.run([*command, "--out", str(tmp_path / "out")], check=True, capture_output=True)
    left = {n: d for n, d in files(tmp_path / "out").items() if not n.endswith(".tmp")}
    assert left == files(tmp_path / "whole")


def spoil(tmp_path: Path, what: str) -> None:
    source, taken = tmp_path / "source", tmp_path / "captures"
    if what == "nan":
        stored = load_file(taken / "tokens-0.safetensors")
        stored["x"][3, 3] = float("nan")
        save_file(stored, taken / "tokens-0.safetensors")
    elif what == "width":
        stored = load_file(taken / "tokens-0.safetensors")
        for part in (0, 1):
            stored = load_file(taken / f"tokens-{part}.safetensors")
            stored["x"] = stored["x"][:, :128].contiguous()
            save_file(stored, taken / f"tokens-{part}.safetensors")
    elif what == "expert number":
        stored = load_file(taken / "tokens-0.safetensors")
        stored["experts"][0, 0] = 99
        save_file(stored, taken / "tokens-0.safetensors")
    elif what == "weight shape":
        stored = load_file(source / "model.safetensors")
        stored[f"{PREFIX}.4.w2.weight"] = stored[f"{PREFIX}.4.w2.weight"][:100].contiguous()
        save_file(stored, source / "model.safetensors")
    elif what == "truncated":
        with (source / "model.safetensors").open("r+b") as file:
            file.truncate(5000)
    elif what == "no scale":
        index = json.loads((source / "model.safetensors.index.json").read_text())
        del index["weight_map"][f"{PREFIX}.2.w3.scale"]
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "no such experts":
        (source / "model.safetensors.index.json").write_text('{"weight_map": {}}')


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("nan", f"{PREFIX}."),
        ("width", f"{PREFIX}.0.w1"),
        ("expert number", "out of range"),
        ("weight shape", f"{PREFIX}.4.w2"),
        ("truncated", "model.safetensors"),
        ("no scale", f"{PREFIX}.2.w3.scale"),
        ("no such experts", PREFIX),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_torn(what, named, tmp_path):
    checkpoint(tmp_path / "source")
    tokens(tmp_path / "captures")
    spoil(tmp_path, what)
    with pytest.raises(InputError) as problem:
        experts = Experts.open(tmp_path / "source", PREFIX)
        taken = Calibration(tmp_path / "captures", torch.device("cpu"))
        run(experts, taken, tmp_path / "out", job())
    assert named in str(problem.value)
    assert not (tmp_path / "out" / MANIFEST).exists()
    for path in (tmp_path / "out").glob("expert-*"):
        assert len(load_file(path)) == 9


def test_hugging_face_names_and_bf16(tmp_path):
    folder = checkpoint(tmp_path / "source", "bf16")
    stored = load_file(folder / "model.safetensors")
    leaves = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    other = "model.layers.3.mlp.experts"
    renamed = {}
    for name, tensor in stored.items():
        _, _, rest = name.partition(PREFIX + ".")
        expert, leaf, suffix = rest.split(".")
        renamed[f"{other}.{expert}.{leaves[leaf]}.{suffix}"] = tensor
    save_file(renamed, folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(renamed, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    calibration = Calibration(tokens(tmp_path / "captures"), torch.device("cpu"))
    manifest = run(Experts.open(folder, other), calibration, tmp_path / "out", job())
    assert f"{other}.0.gate_proj" in manifest["tensors"]


def test_the_program_reports_and_fails_readably(tmp_path, capsys):
    from mtp_retrofit.cli import main

    source, taken = checkpoint(tmp_path / "source"), tokens(tmp_path / "captures")
    command = ["quantise", "--checkpoint", str(source), "--calibration", str(taken)]
    command += ["--device", "cpu", "--out", str(tmp_path / "out"), "--seconds"]
    assert main(command) == 2
    assert f"{PREFIX}.5.w1" in capsys.readouterr().err
    command += ["--unrouted", "nearest"]
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["done"] == 0 and lines[-3]["done"] == EXPERTS
    assert lines[-2]["summary"]["tensors"] == 3 * EXPERTS
    assert lines[-1]["seconds"]["gptq"] > 0
    assert main([*command, "--prefix", "mtp.9"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
