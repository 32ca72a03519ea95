"""The books of the full-size run hold, and what reads its logs does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runbook.document import template
from runbook.document.compile import compile_book
from runbook.document.registry import load_step
from runbook.steps.checkpoint.checkpoint import open_folder
from runbook.steps.checkpoint.layout import layout
from runbook.steps.checkpoint.lint import lint
from runbook.steps.checkpoint.targets import Target
from runbook.steps.common.flags.command import arguments, effective, overlay
from runbook.steps.kernels.synthetic import write
from runbook.steps.kernels.tensors import shards
from tests import test_book_0731 as book_0731
from tests.gpu import flagship
from tests.gpu.phases import phases
from tests.gpu.stage import requirements
from tests.steps.checkpoint import full_size
from tests.test_books import compiled

HERE = Path(__file__).parent


@pytest.mark.parametrize("book", sorted(HERE.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_book_is_valid_and_leaves_multicast_alone(book, tmp_path):
    compiled = compile_book(str(book), [], tmp_path, {}, require_inputs=False)
    steps = {step["uses"]: step["with"] for step in compiled["steps"]}
    flags = steps["serve"]["flags"] or steps["serve"]
    if flags["tensor_parallel_size"] > 1:
        env = {k: v for layer in flags["env"] for k, v in layer.items()}
        assert env["VLLM_ALLREDUCE_USE_FLASHINFER"] == env["VLLM_ALLREDUCE_USE_SYMM_MEM"] == "0"
        assert env["NCCL_NVLS_ENABLE"] == "0"


@pytest.mark.parametrize("name", ["full-size-two-h200", "0731-two-h200"])
def test_the_kernels_are_compiled_for_what_serves(tmp_path, name):
    compiled = compile_book(str(HERE / f"{name}.yaml"), [], tmp_path, {}, require_inputs=False)
    steps = {step["uses"]: step["with"] for step in compiled["steps"]}
    kernels, serve = steps["kernels"], steps["serve"]
    for name in ("flags", "profile", "profiles", "vllm"):
        assert kernels[name] == serve[name]
    assert kernels["build"] == serve["digests"]["build"]


PREFLIGHT = {"env": {}, "hardware": "h200-x2", "values": {}}
COLLECTIVES = {"env": {"NCCL_P2P_DISABLE": "0"}}
SERVED = {
    "endpoint": "http://127.0.0.1:8000/v1",
    "model": "synthetic",
    "process": {"pid": 1, "start_time": 1, "boot_id": "b"},
}


def rendered(name, sets, folder):
    """The inputs of each step on such a machine."""
    book = compile_book(str(HERE / f"{name}.yaml"), sets, folder, {}, require_inputs=False)
    outputs = {"preflight": PREFLIGHT, "collectives": COLLECTIVES, "serve": SERVED}
    outputs |= {"lint": {"path": "/m"}, "mtp": {"path": "/m"}}
    scope = {
        "inputs": book["inputs"],
        "facts": {"cpu": {"cores": 32}},
        "steps": {n: {"outputs": o} for n, o in outputs.items()},
    }
    found = {}
    for step in book["steps"]:
        kind = load_step(step["uses"], "")
        values = kind.Inputs.model_validate(template.render(step["with"], scope))
        found[step["id"]] = SimpleNamespace(**values.model_dump(mode="json"))
    return found


@pytest.mark.parametrize("draft_tokens", [0, 1])
@pytest.mark.parametrize("nccl_settings", ["true", "false"])
def test_the_full_size_is_served_with_and_without_what_is_compared(
    tmp_path, draft_tokens, nccl_settings
):
    sets = [f"draft_tokens={draft_tokens}", f"nccl_settings={nccl_settings}", "port=8100"]
    found = rendered("full-size-two-h200", [*sets, "devices=2,3"], tmp_path)
    assert (found["preflight"].devices, found["preflight"].port) == (["2", "3"], 8100)
    serve, kernels = effective(found["serve"]), effective(found["kernels"])
    assert arguments(serve) == arguments(kernels)
    assert (serve.port, kernels.port) == (8100, 8110)
    drafted = {"method": "mtp", "num_speculative_tokens": 1}
    assert serve.speculative_config == (drafted if draft_tokens else None)
    assert (found["smoke"].speculation is None) == (draft_tokens == 0)
    for env in (overlay(serve.env), overlay(kernels.env), overlay(found["collectives"].env)):
        assert env.get("NCCL_PROTO") == ("LL" if nccl_settings == "true" else None)


@pytest.mark.parametrize("profile", ["long-context", "balanced", "throughput", "latency"])
@pytest.mark.parametrize("draft_tokens", [0, 5])
def test_0731_is_served_with_the_flags_of_its_book(tmp_path, profile, draft_tokens):
    sets = [f"profile={profile}", f"draft_tokens={draft_tokens}"]
    found = rendered("0731-two-h200", sets, tmp_path)
    serve = effective(found["serve"])
    assert (found["smoke"].speculation is None) == (draft_tokens == 0)
    assert ("DSpark draft model loaded" in serve.proof) == (draft_tokens > 0)
    book = compiled(book_0731.NAME, tmp_path, profile=profile)
    other = effective(book_0731.on(book, "h200-x2")["serve"])
    if not draft_tokens:
        assert serve.speculative_config is None
        other.speculative_config = None
    assert arguments(serve) == arguments(other)
    assert serve.proof[0] in other.proof


@pytest.mark.harness
def test_the_synthetic_0731_is_stored_as_the_release_is(tmp_path):
    """Every name, dtype and shape of 167 GB, of which nothing is written: the same headers as those
    that the linter is tried on."""
    flagship.source(tmp_path, "0731")
    config = json.loads((tmp_path / "config.json").read_text())
    stored = {t.name: (t.name, t.dtype, t.shape) for ts in shards(config).values() for t in ts}
    assert stored == full_size.entries(layout(full_size.CONFIG))
    assert {k: config[k] for k in full_size.CONFIG} == full_size.CONFIG


@pytest.mark.harness
def test_the_synthetic_0731_is_written_and_lints_at_small_size(tmp_path):
    """The same generator and fields, with narrow layers."""
    flagship.source(tmp_path / "source", "0731")
    path = tmp_path / "source" / "config.json"
    narrow = {"hidden_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 8,
              "q_lora_rank": 128, "o_groups": 4, "o_lora_rank": 128, "n_routed_experts": 8,
              "index_n_heads": 8, "dspark_markov_rank": 16}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | narrow))
    made = write(tmp_path / "source", tmp_path / "out", 6)
    found = lint(tmp_path / "out", Target("0.33.0"))
    assert [f.id for f in found if f.severity != "info"] == []
    names = open_folder(tmp_path / "out").tensors
    assert made.layers == 6 and {n.split(".")[1] for n in names if n.startswith("mtp.")} == {*"012"}


STUB = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$1" in
bench) exec cat {folder}/bench.json ;;
tune) if [ -e {folder}/killed ]; then exec cat {folder}/tune.json; fi
      touch {folder}/killed; echo "a 1: start" >&2; echo "a 2: start" >&2; exec sleep 60 ;;
status) echo '{{"steps": [{{"id": "serve", "state": "done"}}]}}' ;;
*) exit 0 ;;
esac
"""
POINT = {
    "asked": {"concurrency": 8},
    "output_tokens_per_second": 240.0,
    "deviation": 1.0,
    "ttft_seconds": {"mean": 0.1},
    "tpot_seconds": {"mean": 0.03},
    "acceptance": 0.25,
    "tokens_per_pass": 1.25,
    "watts": 900.0,
}
TUNED = {
    "best": {"values": {"a": 2}},
    "tried": [{"values": {"a": 2}, "score": 9.0, "seconds": 60.0, "error": "", "point": {}}],
}


@pytest.fixture
def measure(tmp_path):
    """measure.py on a machine whose runbook, GPUs and vLLM are played."""
    programs = {
        "bin/nvidia-smi": "#!/bin/sh\nexit 0\n",
        "stage/env/bin/runbook": STUB.format(folder=tmp_path),
        "stage/env/bin/python": (
            f"#!/bin/sh\ncase $1 in *against*) "
            f'echo \'{{"streams": 8, "rounds": 4}}\'; exit ;; esac\nexec {sys.executable} "$@"\n'
        ),
    }
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "stage/env/.ready").touch()
    (tmp_path / "bench.json").write_text(json.dumps({"points": [POINT]}))
    (tmp_path / "best.yaml").write_text("a: 2\n")
    tuned = TUNED | {"profile_file": str(tmp_path / "best.yaml")}
    (tmp_path / "tune.json").write_text(json.dumps(tuned))
    for size in ("full", "six"):
        (tmp_path / f"memory/runbook-{size}").mkdir(parents=True)
    env = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RUNBOOK_GPU_STAGE": str(tmp_path / "stage"),
        "RUNBOOK_GPU_MEMORY": str(tmp_path / "memory"),
    }

    def run(size):
        (tmp_path / "asked").write_text("")
        argv = [sys.executable, HERE / "measure.py", size, "--parts", tmp_path, "--streams", "8"]
        argv += ["--out", tmp_path / "out", "--no-caches"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        asked = (tmp_path / "asked").read_text().splitlines()
        return json.loads((tmp_path / "out/measured.json").read_text()), asked

    return run


def test_each_way_is_measured_once(measure):
    found, asked = measure("full")
    assert list(found) == ["mtp", "without a draft", "NCCL by itself"]
    assert found["mtp"]["against"] == [{"streams": 8, "rounds": 4}]
    assert found["mtp"]["bench"][0]["passes_per_second_and_stream"] == 240 / 8 / 1.25
    starts = [line for line in asked if line.startswith("run ")]
    assert ["draft_tokens=0" in line for line in starts] == [False, True, False]
    assert ["nccl_settings=false" in line for line in starts] == [False, False, True]
    assert [line.split()[0] for line in asked][-2:] == ["destroy", "status"]
    again, asked = measure("full")
    assert again == found
    assert {line.split()[0] for line in asked} == {"status"}


def test_tune_goes_on_after_it_was_killed(measure):
    found, asked = measure("six")
    assert found["tune"]["killed"] == {"exit_code": -9, "candidates_begun": 2}
    assert (found["tune"]["best"], found["tune"]["profile"]) == ({"a": 2}, "a: 2\n")
    assert [line.split()[0] for line in asked if line.startswith("tune")] == ["tune", "tune"]


def test_every_staged_package_has_one_locked_version():
    pins = requirements()
    assert all(pin.count("==") == 1 for pin in pins)
    assert "vllm==0.33.0" in pins
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(names) == len(set(names))


def test_the_seconds_of_each_phase():
    said = [
        "banner",
        "(APIServer pid=1) INFO 11-26 23:59:50 [startup.py:96] non-default args: {}",
        "(EngineCore pid=2) INFO 11-27 00:00:00 [model_runner.py:9] Starting to load model a",
        "Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:01<00:02,  1.0s/it]",
        "(EngineCore pid=2) INFO 11-27 00:01:00 [model_runner.py:1163] Graph capturing finished in",
        "(EngineCore pid=2) INFO 11-27 00:01:05 [kv_cache_utils.py:9] GPU KV cache size: 9 tokens",
        "(EngineCore pid=2) INFO 11-27 00:02:00 [model_runner.py:1163] Graph capturing finished in",
    ]
    expected = [("load", 10), ("profile", 70), ("kv_cache", 75), ("engine", 130)]
    assert phases(f"{line}\n" for line in said) == expected
    assert phases(said[:1]) == []
