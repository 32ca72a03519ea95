"""The books of the full-size run hold, and what reads its logs does."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from runbook.document.compile import compile_book
from tests.gpu.phases import phases
from tests.gpu.stage import requirements

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


def test_the_kernels_are_compiled_for_what_serves(tmp_path):
    book = str(HERE / "full-size-two-h200.yaml")
    compiled = compile_book(book, [], tmp_path, {}, require_inputs=False)
    steps = {step["uses"]: step["with"] for step in compiled["steps"]}
    kernels, serve = steps["kernels"], steps["serve"]
    for name in ("flags", "profile", "profiles", "vllm"):
        assert kernels[name] == serve[name]
    assert kernels["build"] == serve["digests"]["build"]


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
        "(EngineCore pid=2) INFO 11-27 00:00:00 [core.py:139] Initializing a V1 LLM engine",
        "(EngineCore pid=2) INFO 11-27 00:01:00 [model_runner.py:1163] Graph capturing finished in",
        "(EngineCore pid=2) INFO 11-27 00:02:00 [model_runner.py:1163] Graph capturing finished in",
    ]
    assert phases(said) == [("configured", 0), ("engine", 10), ("captured once", 70)]
    assert phases(itertools.islice(said, 1)) == []
