"""What is read from logs; most of them recorded from vLLM 0.32.0."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from runbook.steps.common.starting.log import Progress, Reader

LOGS = Path(__file__).parents[2] / "serve" / "logs"
RECORDED = Path(__file__).parents[1] / "diagnoses" / "logs"


def read(text):
    reader = Reader()
    return reader, [at for line in text.splitlines() if (at := reader.feed(line)) is not None]


def phases(progress):
    """Each phase once for each time that it began."""
    return [key for key, _ in groupby(at.phase for at in progress)]


def test_a_start_on_gpus():
    reader, progress = read((LOGS / "gpu.log").read_text())
    assert progress == [
        Progress("load"),
        Progress("load", 0, 47, "shards"),
        Progress("load", 24, 47, "shards"),
        Progress("kv_cache"),
        Progress("capture", 7, 14, "graphs"),
        Progress("engine"),
    ]
    assert (reader.kv_cache_tokens, reader.max_concurrency) == (1_087_973, 2.08)
    assert reader.draft_shares is None


def test_a_start_on_a_cpu():
    reader, progress = read((LOGS / "ready.log").read_text())
    assert (reader.kv_cache_tokens, reader.max_concurrency) == (58_240, 14.22)
    assert reader.draft_shares
    assert Progress("load", 5, 5, "shards") in progress
    assert phases(progress) == [
        "load", "prepare", "load_draft", "kv_cache", "server", "first_request",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kv_cache_tokens"),
    [("one-h200-six-layers-served", 18_446_956), ("0731-two-h200-first-start", 3_217_581)],
)
def test_a_first_start_of_the_v2_runner(name, kv_cache_tokens):
    """Weights twice, graphs twice, kernels in between: nothing ends with the first capture, nor
    with that of the model, after which come those of a DSpark draft."""
    reader, progress = read((RECORDED / f"{name}.log").read_text())
    assert phases(progress) == [
        "load", "prepare", "load_draft", "profile", "trial_capture", "profile", "kv_cache",
        "jit_warmup", "capture", "engine", "server", "first_request",
    ]  # fmt: skip
    assert reader.kv_cache_tokens == kv_cache_tokens
    assert reader.draft_shares is None, "its runner shares without a word"


def test_kernels_that_warm_up_on_two_gpus():
    text = (RECORDED / "two-h200-full-size-jit.log").read_text()
    reader, progress = read(text)
    assert phases(progress)[-3:] == ["profile", "kv_cache", "jit_warmup"]
    assert progress[-1] == Progress("jit_warmup", 19, 27, "kernels")
    waits = "(EngineCore pid=9183) INFO 11-26 12:13:20 [shm_broadcast.py:878] No available shared "
    waits += "memory broadcast block found in 60 seconds. This typically happens when"
    spoken = reader.spoken
    assert [reader.feed(waits) for _ in range(50)] == [None] * 50
    assert reader.spoken == spoken


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("(Worker_TP0 pid=9) INFO 11-26 12:05:00 [w.py:1] Running FlashInfer autotune", "autotune"),
        ("[AutoTuner]: Tuning fp4_gemm:   0%|          | 0/12 [00:00<?, ?profile/s]", "autotune"),
        ("DeepGEMM warmup:  10%|█         | 1/10 [00:02<00:20, 2.0s/it]", "deep_gemm"),
        ("Compiling CuTeDSL kernels:  10%|█    | 1/10 [00:02<00:20, 2.0s/it]", "jit_warmup"),
        ("INFO 11-26 12:05:00 [d.py:1] Capturing model for DSpark speculator", "trial_capture"),
    ],
)
def test_what_a_line_stands_for(line, phase):
    reader = Reader()
    assert reader.feed(line).phase == phase


@pytest.mark.parametrize(
    "line",
    [
        'INFO:     127.0.0.1:55446 - "GET /health HTTP/1.1" 200 OK',
        "Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 0.0 tokens/s",
    ],
)
def test_lines_that_tell_of_no_progress(line):
    reader = Reader()
    reader.feed(line)
    assert reader.spoken == 0
