"""The smoke test is only worth something if it sees what a server does not report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from runbook.steps.publish import checkpoint
from runbook.steps.publish.checkpoint.script import ANSWER, SCRIPTS
from tests.conftest import Cli, free_port
from tests.e2e import damage
from tests.e2e.conftest import needs_v4

pytestmark = pytest.mark.e2e
LINES = SCRIPTS["v4"]

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


# The same of the DSpark draft, which needs DeepSeek-V4, and what is left of its drafts.
DSPARK: dict[str, tuple[Callable[[Path], object], tuple[int, int]]] = {
    "hidden states of other layers": (
        lambda model: damage.configure(model, dspark_target_layer_ids=[0, 1, 2]),
        LINES.blocks(ANSWER, "context"),
    ),
    "experts of a stage packed in another order": (
        lambda model: damage.spoil(model, "mtp.1. .experts. .weight", damage.reverse_fp4),
        LINES.blocks(ANSWER, "stage 1"),
    ),
    # Two words that other parts know are said of rows that moved there, too.
    "Markov table shifted": (
        lambda model: damage.spoil(model, "markov_w1", damage.shift),
        (75, 2),
    ),
}


def book(folder: Path, model: Path, vllm: str, profile: str = "v3", draft: str = "mtp") -> Path:
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
        "profile": profile,
    }
    serve["with"]["env"] = [e for e in serve["with"]["env"] if isinstance(e, dict)]
    path = folder / "book.yaml"
    inputs = {name: shipped["inputs"][name] for name in ("draft", "profile_file")}
    inputs["draft"]["default"] = draft
    made = {"runbook": 1, "name": "damaged", "inputs": inputs, "steps": [serve, smoke]}
    path.write_text(yaml.safe_dump(made, sort_keys=False))
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


@pytest.mark.long
@needs_v4
@pytest.mark.parametrize("kind", DSPARK)
def test_the_smoke_test_sees_a_damaged_dspark_draft(kind: str, tmp_path: Path, vllm: str) -> None:
    damaged, (drafted, accepted) = DSPARK[kind]
    model = tmp_path / "model"
    checkpoint.write(model, "v4", draft="dspark")
    damaged(model)
    cli = Cli(tmp_path, book(tmp_path, model, vllm, "v4", "dspark"))
    try:
        error = cli.json("run", code=1, timeout=900)["error"]
        assert error["message"] == "the served model fails: draft_counts_differ"
        assert f"{accepted} of {drafted} drafted tokens were accepted" in error["cause"]
    finally:
        cli.run("destroy", "serve", "--yes")


def test_a_missing_head_is_named_at_once(tmp_path: Path, vllm: str) -> None:
    model = tmp_path / "model"
    checkpoint.write(model, "v3", head=False)
    cli = Cli(tmp_path, book(tmp_path, model, vllm))
    answer = cli.json("run", code=1, timeout=900)
    assert answer["error"]["code"] == "mtp_weights_missing"
