"""Books for many models and machines: what they say, that they validate and break no rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from runbook.document.compile import compile_book
from runbook.steps.checkpoint import kv_cache
from runbook.steps.common.flags.command import effective
from runbook.steps.new import kv
from runbook.steps.new.machine import GIB
from runbook.steps.new.model import open_model
from runbook.steps.publish import checkpoint
from runbook.steps.publish.repository import Repository
from runbook.steps.publish.server import start
from runbook.steps.serve import rules
from runbook.steps.serve.command import spec
from tests.steps.new import tiny
from tests.steps.new.conftest import refused
from tests.test_books import OUTPUTS, inputs_of

HERE = Path(__file__).parent
TABLE = yaml.safe_load((HERE / "cases.yaml").read_text())


def steps_of(book: Path, tmp_path: Path) -> dict:
    return {step["id"]: step for step in compile_book(str(book), [], tmp_path / "c", {})["steps"]}


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["id"])
def test_table(case, tmp_path, new):
    told = {**TABLE["models"][case["model"]], **case.get("config", {})}
    template = TABLE["templates"].get(case.get("template"), "")
    folder = tiny.hollow(tmp_path / "model", told, int(case["weights"] * 1e9), template)
    on = TABLE["machines"].get(case.get("machine"))
    made = new("mine", "--from", folder, on=on, **case["options"])
    if "refused" in case:
        refused(made, case)
        return
    assert made.code == 0, made.answer
    gives = case["gives"]
    book = compile_book(str(made.book), [], tmp_path / "c", {}, require_inputs=False)
    steps = {step["id"]: step for step in book["steps"]}
    outputs = json.loads(json.dumps(OUTPUTS))
    if on and on["nvlink"]:
        outputs["preflight"]["env"] = outputs["collectives"]["env"] = {}
    serve = inputs_of(book, outputs=outputs)["serve"]
    if "ranks" in gives:
        assert serve.tensor_parallel_size == made.answer["tensor_parallel_size"] == gives["ranks"]
    for key, value in gives.get("flags", {}).items():
        assert getattr(serve, key) == value
    for key in gives.get("flags_without", ()):
        assert not getattr(serve, key)
    if "series" in gives:
        assert steps["build"]["with"]["series"] == gives["series"]
    for key, value in gives.get("preflight", {}).items():
        assert steps["preflight"]["with"][key] == value
    assert set(gives.get("with", ())) <= set(steps)
    assert not set(gives.get("without", ())) & set(steps)
    profile = effective(serve)
    asked = case["options"]
    assert (profile.max_num_seqs, profile.max_model_len) == (asked["users"], asked["context"])
    # Whether they are known is the build's word.
    serve.release["variables"] = sorted(spec(profile)["env"])
    assert list(rules.findings(rules.world(vars(serve), (), facts(on)), ())) == []
    for step in book["steps"]:
        assert step["timeout"]


def facts(on: dict | None) -> dict:
    """The facts of that machine, as the rules take them."""
    if on is None:
        return {"gpus": [], "gpu_links": []}
    links = [{"a": 0, "b": 1, "kind": "NODE", "nvlinks": 18 * bool(on["nvlink"])}]
    gpus = [
        {"index": i, "uuid": f"GPU-{i}", "architecture": on["architecture"],
         "memory": on["gib"] * GIB}
        for i in range(on["gpus"])
    ]  # fmt: skip
    return {"gpus": gpus, "gpu_links": links if on["nvlink"] is not None else []}


@pytest.mark.parametrize("style", tiny.STYLES)
def test_every_choice_stands_in_the_book_with_its_reason(style, tmp_path, new):
    made = new("mine", "--from", tiny.write(tmp_path / style, style), users=4, context=4000)
    lines = [line.strip() for line in made.book.read_text().splitlines()]
    for choice in made.answer["choices"]:
        if choice["key"] in ("target", "series"):
            continue
        at = next(n for n, line in enumerate(lines) if line.startswith(f"{choice['key']}:"))
        assert lines[at - 1] == f"# {choice['why']}"


@pytest.mark.parametrize("variant", ["v3", "v4"])
@pytest.mark.parametrize("on", [None, "h200-x2"])
def test_the_rehearsals_checkpoints(variant, on, tmp_path, new):
    checkpoint.write(tmp_path / "model", variant)
    options = {"users": 2, "context": 2048}
    if variant == "v3":
        options["tool_call_parser"] = "deepseek_v3"
    made = new("mine", "--from", tmp_path / "model", on=TABLE["machines"].get(on), **options)
    assert made.code == 0, made.answer
    serve = inputs_of(compile_book(str(made.book), [], tmp_path / "c", {}))["serve"]
    assert serve.reasoning_parser == f"deepseek_{variant}"
    assert serve.speculative_config["method"] == "mtp"
    assert (serve.kv_cache_dtype, serve.block_size) == (
        ("fp8", 256) if variant == "v4" else (None,) * 2
    )
    series = next(c["value"] for c in made.answer["choices"] if c["key"] == "series")
    # The compressors of V4 are quantised, which the stock release does not load.
    expected = "0.33.0" if variant == "v4" else ""
    assert series == (made.answer["target"] if on is None else expected)


def test_a_checkpoint_that_cannot_be_served_is_refused_with_the_linters_words(tmp_path, new):
    folder = tiny.write(tmp_path / "model", "qwen")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    made = new("mine", "--from", folder, users=1, context=100)
    assert (made.code, made.error["code"]) == (3, "findings")
    assert "shard_length" in made.error["message"] and "runbook lint" in made.error["remedy"]


def test_nothing_is_overwritten(tmp_path, new):
    folder = tiny.write(tmp_path / "model", "llama")
    (tmp_path / "mine.yaml").write_text("kept")
    made = new("mine", "--from", folder, users=1, context=100)
    assert (made.code, made.error["code"]) == (2, "book_exists")
    assert made.book.read_text() == "kept"
    assert new("mine", "--from", folder, users=1, context=100, output="other.yaml").code == 0


@pytest.mark.parametrize("name", ["rehearsal", "deepseek-v4-flash", "a/b", "..", "A B", "-x"])
def test_names_that_no_book_can_have(name, tmp_path, new):
    made = new("--", name) if name.startswith("-") else new(name, "--from", tmp_path)
    assert made.code == 2


@pytest.mark.parametrize(
    "words",
    [("--users", "0"), ("--context", "-5"), ("--env", "A B=1"), ("--env", "HF_TOKEN=hf_x"),
     ("--kv-bytes-per-token", "0")],
)  # fmt: skip
def test_values_that_cannot_be(words, tmp_path, new):
    folder = tiny.write(tmp_path / "model", "llama")
    made = new("mine", "--from", folder, *words)
    assert (made.code, made.error["code"]) == (2, "usage")
    assert "hf_x" not in json.dumps(made.answer) and not made.book.exists()


def test_of_a_hub_the_headers_alone_are_read_and_the_commit_is_kept(tmp_path, new, monkeypatch):
    folder = tiny.write(tmp_path / "model", "qwen")
    (folder / "original").mkdir()
    (folder / "original" / "params.pth").write_bytes(b"x" * 1000)
    (folder / "consolidated.pth").write_bytes(b"x" * 1000)
    repository = Repository.of(folder, "org/qwen")
    hub, content = start(repository)
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        made = new("mine", "--from", "org/qwen", users=2, context=1000)
        missing = new("other", "--from", "org/none", users=2, context=1000)
    finally:
        for server in (hub, content):
            server.shutdown()
            server.server_close()
    assert made.code == 0, made.answer
    weights = steps_of(made.book, tmp_path)["weights"]
    assert weights["with"]["repo"] == "org/qwen"
    assert weights["with"]["revision"] == repository.revision == made.answer["revision"]
    assert weights["with"]["files"]["ignore"] == ["*/*", "consolidated.pth"]
    assert missing.code == 3 and "lint" not in missing.error["remedy"]


def test_what_a_config_says_breaks_neither_comments_nor_templates(tmp_path, new):
    folder = tiny.write(tmp_path / "model\n{{ 1 }}", "llama")
    made = new("mine", "--from", folder, users=1, context=100)
    assert made.code == 0, made.answer
    serve = inputs_of(compile_book(str(made.book), [], tmp_path / "c", {}))["serve"]
    assert serve.model == str(folder)


CACHES = [
    # (model, ranks, tokens, batched, bytes): by hand, from the formulas that kv.py names.
    ("qwen3-8b", 1, 1000, 8192, 1000 * 36 * 2 * 8 * 128 * 2),
    ("qwen3-8b", 4, 1000, 8192, 1000 * 36 * 2 * 2 * 128 * 2),
    ("qwen3-8b", 16, 1000, 8192, 1000 * 36 * 2 * 1 * 128 * 2),
    ("gpt-oss-20b", 1, 100000, 2048, (100000 + 127 + 4096) * 12 * 2 * 8 * 64 * 2),
]


@pytest.mark.parametrize(("name", "ranks", "tokens", "batched", "expected"), CACHES)
def test_the_cache_of_a_request(name, ranks, tokens, batched, expected, tmp_path):
    folder = tiny.hollow(tmp_path / "model", TABLE["models"][name], 1000)
    assert kv.cache(open_model(str(folder))).request(tokens, batched, ranks) == expected


def test_the_cache_of_deepseek_v4_is_what_its_own_module_reckons(tmp_path):
    told = {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4",
        "num_hidden_layers": 43, "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0],
        "sliding_window": 128, "head_dim": 512, "index_head_dim": 128,
    }  # fmt: skip
    found = kv.cache(open_model(str(tiny.hollow(tmp_path / "model", told, 1000))))
    assert found.request(524288, 8192, 2) == kv_cache.request_bytes(told, 524288, 8192)
    del told["sliding_window"]
    with pytest.raises(kv.NotKnown, match="sliding_window"):
        kv.cache(open_model(str(tiny.hollow(tmp_path / "other", told, 1000))))
