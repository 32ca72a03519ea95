"""The shipped books: every step's inputs fit its models, whatever the book's inputs are."""

from __future__ import annotations

import itertools
import json
import re
from types import SimpleNamespace

import pytest

from runbook.document import template
from runbook.document.compile import BOOKS, compile_book
from runbook.document.registry import load_step
from runbook.steps.checkpoint.targets import Target
from runbook.steps.common import facts
from runbook.steps.common.flags.command import arguments, effective
from runbook.steps.serve import expected, rules
from runbook.steps.serve.command import spec
from tests.conftest import Cli

SHA = "a" * 64
PROCESS = {"pid": 4711, "start_time": 1, "boot_id": "b"}
# What the steps of both books may find, in the form that their models give it.
OUTPUTS = {
    "preflight": {
        "variant": "v4",
        "reduced": False,
        "cpu_isa": "amx",
        "gpus": [],
        "env": {"NCCL_P2P_DISABLE": "1"},
        "hardware": "rtx-pro-6000-x2",
        "values": {"tensor_parallel_size": 2, "proof": ["a line"], "env": {"A": "1"}},
    },
    "toolkit": {
        "provider": "conda",
        "cuda_home": "/w/toolkit",
        "nvcc": "/w/toolkit/bin/nvcc",
        "nvcc_version": "13.2.51",
        "ptxas": "/w/toolkit/bin/ptxas",
        "cc": "/w/toolkit/bin/gcc",
        "cxx": "/w/toolkit/bin/g++",
        "gcc_version": "14.3.0",
        "env": {"CUDA_HOME": "/w/toolkit", "TRITON_PTXAS_PATH": "/w/toolkit/bin/ptxas"},
        "path": ["/w/toolkit/bin"],
    },
    "build": {
        "wheel": "/w/dist/vllm.whl",
        "wheel_sha256": SHA,
        "python": "/w/venv/bin/python",
        "vllm": "/w/venv/bin/vllm",
        "vllm_version": "0.33.0+mtp",
        "patch_digest": SHA,
        "environment_variables": ["VLLM_USE_V1"],
    },
    "collectives": {
        "env": {"NCCL_P2P_DISABLE": "1"},
        "fastest": "NCCL without peer access",
        "custom_all_reduce": "hung",
        "table": [],
    },
    "kernels": {"compiled": True, "seconds": 440.0, "phases": {}},
    "publish": {
        "hub_endpoint": "http://127.0.0.1:4000",
        "repo": "runbook/tiny",
        "revision": "b" * 40,
        "variant": "v4",
        "process": PROCESS,
    },
    "weights": {
        "path": "/w/weights/m",
        "repo": "owner/m",
        "revision": "b" * 40,
        "bytes": 1,
        "files": 1,
    },
    "mtp": {"path": "/w/model", "findings": 0, "head": True, "mended": ["config"]},
    "lint": {"path": "/w/model", "findings": 0, "head": True, "mended": []},
    "serve": {
        "endpoint": "http://127.0.0.1:8000/v1",
        "model": "m",
        "profile": None,
        "reference": {"tokens_per_second": 85.5, "ttft_seconds": 0.155, "source": "a card"},
        "log": "/w/serve/server.log",
        "process": PROCESS,
        "supervisor": "session",
        "kv_cache_tokens": None,
        "max_concurrency": None,
        "draft_head_shared": None,
        "api_key_file": None,
    },
}

MAX_Q = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"
ONE_STREAM = {"long-context": 85.5, "latency": 111}
"""Tokens/s by the model card; of the other profiles it has those of several streams."""

# Flags by profile as they were measured on two Max-Q cards:
# context, sequences, share of memory.
PROFILES = {
    "long-context": (524288, 2, 0.93),
    "long-context-3": (524288, 3, 0.93),
    "mid": (262144, 4, 0.95),
    "throughput": (131072, 8, 0.90),
    "latency": (131072, 1, 0.93),
}


def compiled(name, tmp_path, **sets):
    pairs = [f"{key}={value}" for key, value in sets.items()]
    # One cache for all tests of this process: many ask for the same book.
    return compile_book(name, pairs, tmp_path.parent / "compiled", {}, require_inputs=False)


def inputs_of(book, variant="v4", outputs=OUTPUTS):
    """The validated inputs of each active step, as the engine would render them."""
    outputs = json.loads(json.dumps(outputs))
    outputs["preflight"]["variant"] = outputs["publish"]["variant"] = variant
    scope = {
        "inputs": book["inputs"],
        "facts": {"gpus": [], "cpu": {"cores": 32}},
        "workspace": "/w",
        "steps": {name: {"outputs": values} for name, values in outputs.items()},
    }
    found = {}
    for step in book["steps"]:
        if step["when"] is not None and not template.evaluate(step["when"], scope):
            continue
        kind = load_step(step["uses"], step["folder"])
        values = kind.Inputs.model_validate(template.render(step["with"], scope))
        found[step["id"]] = SimpleNamespace(**values.model_dump(mode="json"))
    return found


def test_the_sample_outputs_are_of_the_models():
    for name, values in OUTPUTS.items():
        kind = load_step({"build": "vllm", "lint": "mtp"}.get(name, name), "")
        kind.Outputs.model_validate(values)


@pytest.mark.parametrize(
    ("ranks", "asked", "variant"),
    list(itertools.product([1, 2], ["auto", "v3", "v4"], ["v3", "v4"])),
)
def test_rehearsal(tmp_path, ranks, asked, variant):
    book = compiled("rehearsal", tmp_path, tensor_parallel_size=ranks, variant=asked, port=9001)
    steps = inputs_of(book, variant)
    assert steps["preflight"].variant == asked
    assert steps["publish"].tensor_parallel == ranks
    argv = " ".join(spec(effective(steps["serve"]))["argv"])
    assert f"--tensor-parallel-size {ranks}" in argv
    assert f"--reasoning-parser deepseek_{variant}" in argv
    for flag in ("--kv-cache-dtype fp8", "--block-size 256", "--tokenizer-mode deepseek_v4"):
        assert (flag in argv) == (variant == "v4")
    assert "--kv-cache-memory-bytes 268435456" in argv
    assert steps["mtp"].target == steps["build"].target


def test_the_rehearsal_needs_no_jinja_when_nothing_is_to_be_done(tmp_path):
    book = compiled("rehearsal", tmp_path)
    assert '"$jinja"' not in json.dumps(book["steps"])


@pytest.mark.parametrize("profile", PROFILES)
def test_flagship(tmp_path, profile):
    book = compiled("deepseek-v4-flash", tmp_path, profile=profile)
    steps = inputs_of(book)
    serve = effective(steps["serve"])
    assert (serve.max_model_len, serve.max_num_seqs, serve.gpu_memory_utilization) == (
        PROFILES[profile]
    )
    argv = " ".join(spec(serve)["argv"])
    for flag in (
        "--tensor-parallel-size 2",
        "--kv-cache-dtype fp8",
        "--block-size 256",
        "--tokenizer-mode deepseek_v4",
        "--reasoning-parser deepseek_v4",
        "--tool-call-parser deepseek_v4",
        "--disable-custom-all-reduce",
        '--speculative-config {"method":"mtp","num_speculative_tokens":1}',
        "--max-num-batched-tokens 8192",
    ):
        assert flag in argv
    env = spec(serve)["env"]
    assert env["TRITON_PTXAS_PATH"] == "/w/toolkit/bin/ptxas"
    assert env["NCCL_P2P_DISABLE"] == env["A"] == "1"
    assert serve.proof == ["a line"]
    assert "PYTORCH_CUDA_ALLOC_CONF" not in env
    assert Target(steps["mtp"].target, steps["mtp"].series).quirks <= {
        "fp4_renames_scales",
        "experts_alike",
    }
    assert set(PROFILES) == set(steps["serve"].profiles)
    assert steps["smoke"].speed["reference"] == OUTPUTS["serve"]["reference"]
    cards = [{"name": MAX_Q, "power_limit": 300.0, "memory": 1, "uuid": "a", "index": 0}] * 2
    reached = expected(serve, {"gpus": cards})
    assert (reached and reached["tokens_per_second"]) == ONE_STREAM.get(profile)


@pytest.mark.parametrize(
    ("users", "context", "profile"),
    [(None, None, "long-context"), (4, 200000, "mid"), (8, 100000, "throughput")],
)
def test_the_flagship_takes_the_profile_that_fits(tmp_path, users, context, profile):
    sets = {} if users is None else {"users": users, "context": context}
    serve = effective(inputs_of(compiled("deepseek-v4-flash", tmp_path, **sets))["serve"])
    assert serve.profile == profile
    assert serve.profile_reason


def test_the_kernels_are_compiled_for_the_very_flags_that_serve(tmp_path):
    steps = inputs_of(compiled("deepseek-v4-flash", tmp_path, users=4, context=200000))
    kernels, serve = effective(steps["kernels"]), effective(steps["serve"])
    assert arguments(kernels) == arguments(serve)
    assert kernels.extra_args == serve.extra_args
    assert kernels.env == serve.env and kernels.path == serve.path
    assert kernels.build == serve.digests["build"]
    assert (kernels.repo, kernels.revision) == (steps["weights"].repo, steps["weights"].revision)


def machine(told):
    """The facts of a machine that just meets an alternative of preflight's `hardware`."""
    count, hopper = told["gpus"], told["gpu_architecture"] == "9.0"
    gpus = [
        {
            "index": i,
            "uuid": f"GPU-{i}",
            "architecture": told["gpu_architecture"],
            "memory": told["gpu_memory_mib"] << 20,
        }
        for i in range(count)
    ]
    links = [
        {"a": a, "b": b, "kind": "NODE", "nvlinks": 18 if hopper else 0}
        for a, b in itertools.combinations(range(count), 2)
    ]
    return {"gpus": gpus, "gpu_links": links, "cpu": {"cores": 32}}


HARDWARE = {"rtx-pro-6000-x2": "MARLIN", "h200-x2": "HUMMING", "h100-x4": "HUMMING"}


@pytest.mark.parametrize(("hardware", "profile"), list(itertools.product(HARDWARE, PROFILES)))
def test_the_flagship_breaks_no_rule_on_its_hardware(tmp_path, hardware, profile):
    book = compiled("deepseek-v4-flash", tmp_path, profile=profile)
    told = book["steps"][0]["with"]["hardware"]
    assert set(told) == set(HARDWARE)
    outputs = json.loads(json.dumps(OUTPUTS))
    on_nvlink = told[hardware]["gpu_architecture"] == "9.0"
    outputs["preflight"] |= {
        "values": told[hardware]["values"],
        "env": {} if on_nvlink else {"NCCL_P2P_DISABLE": "1"},
    }
    outputs["collectives"]["env"] = {"NCCL_P2P_DISABLE": "0" if on_nvlink else "1"}
    serve = inputs_of(book, outputs=outputs)["serve"]
    assert effective(serve).tensor_parallel_size == told[hardware]["gpus"]
    threads = spec(effective(serve))["env"]["VLLM_TRITON_JIT_WARMUP_NUM_THREADS"]
    assert int(threads) == 32 // told[hardware]["gpus"]
    assert HARDWARE[hardware] in serve.proof[0]
    variables = set(spec(effective(serve))["env"])
    serve.release["variables"] = sorted(variables)  # whether they are known is the build's word
    world = rules.world(vars(serve), (), machine(told[hardware]))
    assert list(rules.findings(world, ())) == []


def test_the_flagship_asks_before_it_downloads(tmp_path):
    book = compiled("deepseek-v4-flash", tmp_path)
    weights = next(step for step in book["steps"] if step["id"] == "weights")
    work = {"bytes": 146_000_000_000, "seconds": 0, "disk": 0}
    question = template.render(weights["approve"], {"check": {"work": work}})
    assert question == "Download 146 GB of weights?"
    unknown = template.render(weights["approve"], {"check": {"work": {**work, "bytes": 0}}})
    assert unknown == "Download up to 146 GB of weights?"
    assert book["secrets"] == ["HF_TOKEN"]


@pytest.mark.parametrize("name", sorted(path.stem for path in BOOKS.glob("*.yaml")))
def test_no_question_says_that_a_download_of_unknown_size_is_none(name, tmp_path):
    work = {"bytes": 0, "seconds": 0, "disk": 0}
    book = compiled(name, tmp_path)
    for step in book["steps"]:
        if step["approve"] is not None:
            scope = {"check": {"work": work}, "inputs": book["inputs"]}
            question = template.render(step["approve"], scope)
            assert "0 B" not in question and "\n" not in question


@pytest.mark.parametrize("prompts", ["", "/p/prompts.jsonl"])
def test_mtp_head(tmp_path, prompts):
    book = compiled("mtp-head", tmp_path, base="owner/base", prompts=prompts)
    folders = ("base", "upstream", "round", "draft", "capture", "quantise", "assemble")
    outputs = {**OUTPUTS, **{name: {"path": f"/w/{name}"} for name in folders}}
    if not prompts:
        outputs["prompts"] = {"path": "/w/prompts.jsonl", "count": 256, "revision": "b" * 40}
    steps = inputs_of(book, outputs=outputs)
    assert ("prompts" in steps) == (not prompts)
    capture = steps["capture"]
    assert capture.prompts == (prompts or "/w/prompts.jsonl")
    assert capture.record == "moments" and capture.model == "/w/draft"
    for name in ("round", "capture", "quantise"):  # the same weights, else moments are of others
        assert steps[name].checkpoint == "/w/upstream"
        assert steps[name].prefix == capture.prefix
    assert steps["quantise"].calibration == "/w/capture" and not steps["round"].calibration
    assert steps["quantise"].unrouted == "error"
    if not prompts:
        assert steps["prompts"].repo == "HuggingFaceH4/ultrachat_200k"
        assert steps["prompts"].count == capture.count == 256


@pytest.mark.parametrize(
    ("step", "given", "revision"),
    [
        ("prompts", {}, r"[0-9a-f]{40}"),
        ("prompts", {"dataset": "a/b"}, "main"),
        ("prompts", {"dataset": "a/b", "dataset_revision": "v1"}, "v1"),
        ("prompts", {"dataset_revision": "v1"}, "v1"),
        ("upstream", {}, r"[0-9a-f]{40}"),
        ("upstream", {"upstream": "a/b"}, "main"),
        ("upstream", {"upstream": "a/b", "upstream_revision": "v1"}, "v1"),
        ("base", {}, "main"),
    ],
)
def test_what_mtp_head_fetches_by_itself_is_pinned(tmp_path, step, given, revision):
    book = compiled("mtp-head", tmp_path, base="owner/base", **given)
    scope = {"inputs": book["inputs"], "facts": {}, "workspace": "/w", "steps": {}}
    values = next(s["with"] for s in book["steps"] if s["id"] == step)
    assert re.fullmatch(revision, template.render(values["revision"], scope))


@pytest.mark.parametrize("book", sorted(BOOKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_step_runs_without_an_end(tmp_path, book):
    for step in compiled(book.stem, tmp_path)["steps"]:
        assert step["timeout"], step["id"]


@pytest.mark.parametrize("book", sorted(BOOKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_host_and_no_path_of_a_machine(book):
    text = book.read_text()
    assert not re.search(r"https?://|/home/|/root/|/work/", text)


@pytest.mark.skipif(facts.nvidia_driver_present(), reason="there is a driver")
def test_without_a_gpu_the_flagship_names_what_is_missing_and_the_way_out(tmp_path):
    cli = Cli(tmp_path, "deepseek-v4-flash")
    answer = cli.json("run", code=3)
    assert answer["error"]["remedy"] == "runbook run rehearsal"
    assert "no NVIDIA driver" in answer["error"]["cause"]
    assert "2 GPUs of compute capability 12.0" in answer["error"]["cause"]
    plan = cli.json("plan")
    codes = [reason["code"] for reason in plan["steps"][0]["reasons"]]
    assert {"no_driver", "gpus_missing"} <= set(codes)
