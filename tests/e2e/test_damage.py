"""The smoke test is only worth something if it sees what a server does not report."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from runbook.steps.publish import checkpoint
from tests.conftest import Cli, free_port
from tests.e2e import damage

pytestmark = pytest.mark.e2e

# What is spoilt in the reduced rehearsal's checkpoint, and all that the smoke test says of it; a
# broken answer takes more with it.
DAMAGES = {
    "experts packed in another order": (
        ("model.layers.1.mlp.experts weight_packed", damage.reverse_nibbles),
        ["echo_differs", ...],
    ),
    "head packed in another order": (
        ("model.layers.3.mlp.experts weight_packed", damage.reverse_nibbles),
        ["draft_counts_differ"],
    ),
    "attention that sees nothing": (
        ("model.layers.1.self_attn.o_proj.weight", damage.zero),
        ["tool_call_missing", "streamed_tool_call_missing"],
    ),
}


def book(folder: Path, model: Path, vllm: str) -> Path:
    """Serve and smoke test as the rehearsal does, of another model."""
    shipped = yaml.safe_load((files("runbook") / "books" / "rehearsal.yaml").read_text())
    serve, smoke = (copy.deepcopy(step) for step in shipped["steps"][-2:])
    assert (serve["id"], smoke["id"]) == ("serve", "smoke")
    serve.pop("needs")
    del serve["with"]["digests"], smoke["with"]["about"]
    serve["with"] |= {
        "vllm": vllm,
        "model": str(model),
        "port": free_port(),
        "tensor_parallel_size": 1,
        "profile": "v3",
    }
    serve["with"]["env"] = [e for e in serve["with"]["env"] if isinstance(e, dict)]
    path = folder / "book.yaml"
    path.write_text(
        yaml.safe_dump({"runbook": 1, "name": "damaged", "steps": [serve, smoke]}, sort_keys=False)
    )
    return path


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_smoke_test_sees_silent_damage(kind: str, tmp_path: Path, vllm: str) -> None:
    (pattern, change), seen = DAMAGES[kind]
    model = tmp_path / "model"
    checkpoint.write(model, "v3")
    assert damage.spoil(model, pattern, change)
    cli = Cli(tmp_path, book(tmp_path, model, vllm))
    try:
        answer = cli.json("run", code=1, timeout=900)
        assert answer["error"]["code"] == "smoke_failed"
        found = answer["error"]["message"].removeprefix("the served model fails: ").split(", ")
        if seen[-1] is ...:
            assert found[0] == seen[0]
        else:
            assert found == seen
    finally:
        cli.run("destroy", "serve", "--yes")


def test_a_missing_head_is_named_at_once(tmp_path: Path, vllm: str) -> None:
    model = tmp_path / "model"
    checkpoint.write(model, "v3", head=False)
    cli = Cli(tmp_path, book(tmp_path, model, vllm))
    answer = cli.json("run", code=1, timeout=900)
    assert answer["error"]["code"] == "mtp_weights_missing"
