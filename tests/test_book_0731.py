"""The book of DeepSeek-V4-Flash-0731: flags by profile and hardware, none of which breaks a rule,
and what it refuses and asks before a byte is downloaded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from runbook.document import template
from runbook.document.compile import BOOKS
from runbook.steps.checkpoint.checkpoint import open_folder
from runbook.steps.checkpoint.lint import lint
from runbook.steps.checkpoint.targets import Target
from runbook.steps.common.flags.command import arguments, effective
from runbook.steps.kernels.tensors import shards
from runbook.steps.preflight.checks import examine
from runbook.steps.preflight.hardware import fitted
from runbook.steps.serve import rules
from runbook.steps.serve.command import spec
from runbook.steps.smoke.ladder import LADDER
from tests.steps.checkpoint import full_size
from tests.steps.preflight.test_checks import described
from tests.test_books import OUTPUTS, compiled, inputs_of, machine

NAME = "deepseek-v4-flash-0731"
HARDWARE = yaml.safe_load((BOOKS / f"{NAME}.yaml").read_text())["steps"][0]["with"]["hardware"]
MACHINES = yaml.safe_load(Path(__file__).with_name("machines.yaml").read_text())
# Context, sequences, tokens of a step, share of memory.
PROFILES = {
    "long-context": (1000000, 2, 2048, 0.96),
    "balanced": (262144, 8, 4096, 0.95),
    "throughput": (131072, 24, 4096, 0.94),
    "latency": (131072, 1, 4096, 0.94),
}
COMMITS = {
    "native": "9e165c30e2704aec5d9d593cce3eebd58bbef1cb",
    "nvfp4": "f1caa71142bd0be02f728c79f75042ac1e461579",
}
MEMORY = dict.fromkeys(HARDWARE, 97_887) | {"h200-x2": 143_771, "h100-x4": 81_559}
"""MiB of the cards, as NVML tells them."""
WEIGHTS = {"native": 166_878_536_440, "nvfp4": 175_550_788_904}
"""Bytes of the files, as published."""


def on(book, hardware="rtx-pro-6000-max-q-x2", peer_access=True):
    """The inputs of the steps on one kind of machine, peer access right or not."""
    told = book["steps"][0]["with"]["hardware"][hardware]
    outputs = json.loads(json.dumps(OUTPUTS))
    outputs["preflight"] |= {"values": told["values"], "hardware": hardware, "env": {}}
    outputs["serve"]["profile"] = book["inputs"]["profile"]
    outputs["collectives"] |= {
        "env": {"NCCL_P2P_DISABLE": "0" if peer_access else "1"},
        "fastest": f"NCCL with{'' if peer_access else 'out'} peer access",
    }
    return inputs_of(book, outputs=outputs)


@pytest.mark.parametrize("profile", PROFILES)
def test_flags(tmp_path, profile):
    steps = on(compiled(NAME, tmp_path, profile=profile), "rtx-pro-6000-max-q-x2")
    serve = effective(steps["serve"])
    found = (
        serve.max_model_len,
        serve.max_num_seqs,
        serve.max_num_batched_tokens,
        serve.gpu_memory_utilization,
    )
    assert found == PROFILES[profile]
    argv = " ".join(spec(serve)["argv"])
    for flag in (
        "--tensor-parallel-size 2",
        "--kv-cache-dtype fp8",
        "--block-size 256",
        "--tokenizer-mode deepseek_v4",
        "--reasoning-parser deepseek_v4",
        "--tool-call-parser deepseek_v4",
        "--disable-custom-all-reduce",
        '--speculative-config {"draft_sample_method":"probabilistic","method":"dspark"',
        '"num_speculative_tokens":5}',
        '--kernel-config {"enable_flashinfer_autotune":false,"moe_backend":"auto"}',
    ):
        assert flag in argv
    assert "adaptive" not in argv and "fp4_indexer" not in argv
    assert serve.proof == ["DSpark draft model loaded", "Using 'DEEPGEMM_MXFP4' Mxfp4 MoE backend"]
    assert set(PROFILES) == set(steps["serve"].profiles)
    assert all(told["figures"] for told in steps["serve"].profiles.values())


@pytest.mark.parametrize(
    ("users", "context", "profile"),
    [(None, None, "balanced"), (1, 1000000, "long-context"), (24, 100000, "throughput"),
     (1, 100000, "latency")],
)  # fmt: skip
def test_the_profile_that_fits_is_taken(tmp_path, users, context, profile):
    sets = {} if users is None else {"users": users, "context": context}
    assert effective(on(compiled(NAME, tmp_path, **sets))["serve"]).profile == profile


def test_the_kernels_are_compiled_for_the_very_flags_that_serve(tmp_path):
    steps = on(compiled(NAME, tmp_path))
    kernels, serve = effective(steps["kernels"]), effective(steps["serve"])
    assert arguments(kernels) == arguments(serve)
    assert (kernels.extra_args, kernels.env, kernels.path) == (
        serve.extra_args,
        serve.env,
        serve.path,
    )
    assert (kernels.repo, kernels.revision) == (steps["weights"].repo, steps["weights"].revision)


def quantized(variant):
    """The config of the release, or of NVIDIA's conversion as far as it is known."""
    config = {**json.loads(json.dumps(full_size.CONFIG)), "sliding_window": 128}
    if variant == "nvfp4":
        named = {f"layers.{i}.ffn.experts": {"quant_algo": "NVFP4"} for i in range(43)}
        config["quantization_config"] |= {
            "moe_quant_algo": "NVFP4",
            "ignore": ["mtp.*"],
            "quantized_layers": named,
        }
    return config


@pytest.mark.parametrize(("name", "variant"), list(itertools.product(HARDWARE, WEIGHTS)))
def test_no_rule_is_broken(tmp_path, name, variant):
    book = compiled(NAME, tmp_path, variant=variant)
    told = book["steps"][0]["with"]["hardware"][name]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(quantized(variant)))
    index = {"metadata": {"total_size": WEIGHTS[variant]}, "weight_map": {"embed.weight": "a"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    for profile, peer_access in itertools.product(PROFILES, (True, False)):
        serve = on(book, name, peer_access)["serve"]
        serve.profile, serve.model = profile, str(model)
        serve.release["variables"] = sorted(spec(effective(serve))["env"])
        world = rules.world(vars(serve), (), machine({**told, "gpu_memory_mib": MEMORY[name]}))
        assert world["checkpoint"]["nvfp4"] == (variant == "nvfp4")
        assert world["request_gib"] > 3, "a request of full length fits beside the weights"
        found = {reason.code for reason in rules.findings(world, ())}
        # The probe has the last word on NVLink; that it goes unused is said.
        unused = told["values"]["nvlink"] and not peer_access
        assert found == ({"peer_access_off_on_nvlink"} if unused else set()), profile


def test_what_is_known_of_the_weights_adds_up_to_their_published_size():
    """Names, shapes and dtypes, by which disk and memory are reckoned and headers are examined."""
    found = {
        variant: [t for ts in shards(quantized(variant)).values() for t in ts]
        for variant in WEIGHTS
    }
    sizes = {variant: sum(t.nbytes for t in tensors) for variant, tensors in found.items()}
    assert sizes["native"] == WEIGHTS["native"]
    headers = WEIGHTS["nvfp4"] - sizes["nvfp4"]  # what is published of it is the size of the files
    assert 90 < headers / len(found["nvfp4"]) < 130


def test_the_nvfp4_draft_is_refused_on_the_stock_release(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(quantized("nvfp4")))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    serve = on(compiled(NAME, tmp_path, variant="nvfp4"))["serve"]
    serve.model = str(tmp_path)
    assert serve.release["series"] == "0.33.0-nvfp4"
    serve.release |= {"series": "", "variables": None}
    world = rules.world(vars(serve), (), machine({"gpus": 2, "gpu_architecture": "12.0",
                                                  "gpu_memory_mib": 97887}))  # fmt: skip
    assert "nvfp4_draft" in {r.code for r in rules.findings(world, ()) if r.severity == "error"}


@pytest.mark.parametrize(("asked", "tried"), [("auto", True), ("off", False)])
def test_the_all_reduce_over_pcie_is_tried_before_it_serves(tmp_path, asked, tried):
    steps = on(compiled(NAME, tmp_path, pcie_all_reduce=asked))
    assert steps["collectives"].pcie_ipc is tried
    assert "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC" not in spec(effective(steps["serve"]))["env"]


def test_inputs_of_the_draft_and_the_experts(tmp_path):
    sets = {"draft_tokens": 3, "draft_sampling": "greedy", "moe_backend": "marlin"}
    serve = on(compiled(NAME, tmp_path, **sets), "h200-x2")["serve"]
    flags = effective(serve)
    assert flags.speculative_config == {
        "method": "dspark",
        "num_speculative_tokens": 3,
        "draft_sample_method": "greedy",
    }
    assert '"moe_backend":"marlin"' in flags.extra_args[1]
    assert serve.proof == ["DSpark draft model loaded"]


def test_the_log_must_name_the_kernels_of_model_and_draft(tmp_path):
    proof = on(compiled(NAME, tmp_path, variant="nvfp4"))["serve"].proof
    assert proof[1:] == [
        "Using 'FLASHINFER_CUTLASS' NvFp4 MoE backend",
        "Using 'DEEPGEMM_MXFP4' Mxfp4 MoE backend",
    ]


@pytest.mark.parametrize("variant", WEIGHTS)
def test_weights_are_pinned_by_commit_and_digests(tmp_path, variant):
    steps = on(compiled(NAME, tmp_path, variant=variant))
    weights = steps["weights"]
    assert weights.revision == COMMITS[variant]
    assert weights.repo.startswith("deepseek-ai" if variant == "native" else "nvidia")
    assert {"config.json", "model.safetensors.index.json"} <= set(weights.sha256)
    other = on(compiled(NAME, tmp_path, variant=variant, revision="b" * 40))["weights"]
    assert (other.revision, other.sha256) == ("b" * 40, {})
    # What loads them is what they were linted for.
    series = {"native": "", "nvfp4": "0.33.0-nvfp4"}[variant]
    assert steps["build"].series == steps["lint"].series == series
    assert steps["serve"].release["series"] == series
    # Room for them, what is built, and kernels compiled meanwhile.
    assert steps["preflight"].disk_gb * 1e9 > WEIGHTS[variant] + 45e9


@pytest.mark.parametrize(
    ("variant", "work", "told"),
    [
        ("native", 166_878_536_440, "167 GB"),
        ("nvfp4", 175_550_788_904, "176 GB"),
        ("native", 0, "up to 167 GB"),
        ("nvfp4", 0, "up to 176 GB"),
    ],
)
def test_it_asks_for_the_true_bytes(tmp_path, variant, work, told):
    book = compiled(NAME, tmp_path, variant=variant)
    step = next(s for s in book["steps"] if s["id"] == "weights")
    scope = {
        "check": {"work": {"bytes": work, "seconds": 0, "disk": 0}},
        "inputs": book["inputs"],
    }
    assert template.render(step["approve"], scope) == f"Download {told} of weights?"


@pytest.mark.parametrize("case", MACHINES["cases"], ids=lambda case: case["name"])
def test_recorded_machines(tmp_path, case):
    """What preflight makes of machines that were met, and of such that lack something."""
    given = on(compiled(NAME, tmp_path))["preflight"]
    parts = described(case.get("machine"), tmp_path)
    parts.nvidia["gpus"] = [
        {**gpu, "index": number, "uuid": f"GPU-{number}", "bus": f"00000000:{number}1:00.0"}
        for number, gpu in enumerate(case["gpus"])
    ]
    parts.nvidia["links"] = [
        {"a": a, "b": b, **case["link"]}
        for a, b in itertools.combinations(range(len(case["gpus"])), 2)
    ]
    parts.__dict__["gpu_load"] = []
    inputs = fitted(parts, SimpleNamespace(**vars(given)))
    reasons = examine(parts, inputs, thorough=True)
    assert [reason.code for reason in reasons] == case["codes"]
    if "hardware" in case:
        assert inputs.chosen == case["hardware"]
    for words in case.get("says", ()):
        assert any(words in reason.message for reason in reasons), words


def test_smoke_asks_all_there_is_and_as_many_at_once_as_the_profile_serves(tmp_path):
    for profile, streams in (("balanced", 8), ("throughput", 24), ("latency", 2)):
        smoke = on(compiled(NAME, tmp_path, profile=profile), "h200-x2")["smoke"]
        assert smoke.concurrency["sequences"] == streams
        assert all(getattr(smoke, needed) for _, needed in LADDER.values() if needed)
        assert smoke.efforts["efforts"] == ["low", "high", "max"]
        assert smoke.efforts["default"] == "high"


@pytest.mark.harness
def test_the_step_that_lints_accepts_the_release_in_full_size(tmp_path):
    """Headers alone, all of them: what the download of 167 GB will hold."""
    step = on(compiled(NAME, tmp_path))["lint"]
    full_size.write(tmp_path / "0731")
    found = lint(tmp_path / "0731", Target(step.target, step.series))
    assert {finding.id: finding.severity for finding in found} == {"dspark_draft": "info"}
    total = sum(tensor.nbytes for tensor in open_folder(tmp_path / "0731").tensors.values())
    assert total == WEIGHTS["native"]
