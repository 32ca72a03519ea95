"""What is read from logs; most of them recorded from vLLM 0.32.0."""

from __future__ import annotations

from pathlib import Path

from runbook.steps.serve.log import Progress, Reader

LOGS = Path(__file__).parent / "logs"


def read(text):
    reader = Reader()
    return reader, [at for line in text.splitlines() if (at := reader.feed(line)) is not None]


def test_a_start_on_gpus():
    reader, progress = read((LOGS / "gpu.log").read_text())
    assert progress == [
        Progress("load weights"),
        Progress("load weights", 0, 47, "shards"),
        Progress("load weights", 24, 47, "shards"),
        Progress("set up the KV cache"),
        Progress("warm up the engine"),
        Progress("capture graphs", 7, 14, "graphs"),
        Progress("warm up the engine"),
    ]
    assert (reader.kv_cache_tokens, reader.max_concurrency) == (1_087_973, 2.08)
    assert not reader.shared_embedding


def test_a_start_on_a_cpu():
    reader, progress = read((LOGS / "ready.log").read_text())
    assert (reader.kv_cache_tokens, reader.max_concurrency) == (58_240, 14.22)
    assert reader.shared_embedding
    assert reader.shared_head
    assert Progress("load weights", 5, 5, "shards") in progress
    assert progress[-1] == Progress("answer the first request")
