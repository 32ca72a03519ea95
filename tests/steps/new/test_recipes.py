"""Recipes of the project vllm-project/recipes, as books: `recipes.yaml` has the cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runbook.document.compile import compile_book
from runbook.steps.common.flags.command import effective
from runbook.steps.publish.repository import Repository
from runbook.steps.publish.server import start
from runbook.steps.serve.command import spec
from tests.steps.new import tiny
from tests.steps.new.conftest import refused
from tests.test_books import inputs_of

HERE = Path(__file__).parent
CASES = yaml.safe_load((HERE / "recipes.yaml").read_text())
MACHINES = yaml.safe_load((HERE / "cases.yaml").read_text())["machines"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recipe(case, tmp_path, new):
    words = ["--recipe", HERE / "recipes" / case["file"], *case.get("words", ())]
    if "model" in case:
        words += ["--from", tiny.write(tmp_path / "model", case["model"])]
    made = new("mine", *words, on=MACHINES.get(case.get("machine")), **case["options"])
    if "refused" in case:
        refused(made, case)
        return
    assert made.code == 0, made.answer
    serve = inputs_of(compile_book(str(made.book), [], tmp_path / "c", {}))["serve"]
    gives = case["gives"]
    assert serve.tensor_parallel_size == gives.get("ranks", serve.tensor_parallel_size)
    for key, value in gives.get("flags", {}).items():
        assert getattr(serve, key) == value, key
    if "arguments" in gives:
        assert serve.extra_args == gives["arguments"]
    env = spec(effective(serve))["env"]
    for key, value in gives.get("env", {}).items():
        assert env[key] == value
    if "unknown" in gives:
        assert made.answer["unknown"] == gives["unknown"]
    head = made.book.read_text().partition("runbook: 1")[0]
    for said in gives.get("left_out", ()):
        assert any(said in told for told in made.answer["left_out"]), made.answer["left_out"]
        assert said in head
    for key in made.answer["unknown"]:
        assert key in head


def test_every_recipe_has_a_case():
    assert {case["file"] for case in CASES} == {p.name for p in (HERE / "recipes").iterdir()}


def test_the_checkpoint_of_a_recipe_is_read_from_the_hub(tmp_path, new, monkeypatch):
    repository = Repository.of(tiny.write(tmp_path / "model", "qwen"), "nobody/plain-1b")
    hub, content = start(repository)
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        made = new("mine", "--recipe", HERE / "recipes/plain.yaml", users=2, context=1000)
    finally:
        for server in (hub, content):
            server.shutdown()
            server.server_close()
    assert made.answer["source"] == "nobody/plain-1b"
    assert made.answer["revision"] == repository.revision
