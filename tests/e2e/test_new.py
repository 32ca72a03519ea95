"""Books that `runbook new` wrote, run as they stand: vLLM's CPU build serves other models."""

from __future__ import annotations

import json
import urllib.request

import pytest

from runbook.steps.publish import checkpoint
from runbook.steps.publish.repository import Repository
from runbook.steps.publish.server import start
from tests.conftest import free_port
from tests.e2e.conftest import Rehearsal
from tests.steps.new import tiny

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One workspace, taken over from book to book, so that vLLM is built once."""
    cli = Rehearsal(tmp_path_factory.mktemp("new"), free_port())
    yield cli
    cli.run("cancel")
    cli.run("destroy", "--yes")


def served(cli, name, source, *words, until="smoke", code=0, **environment):
    """The answer of `run` for a new book."""
    cli.book = None
    cli.json("new", name, "--from", source, *words, **environment)
    cli.book = cli.home / f"{name}.yaml"
    assert cli.json("validate", **environment)["ok"]
    return cli.json("run", "--adopt-workspace", "--yes", "--until", until, code=code, **environment)


def ask(cli, model: str, text: str, **fields) -> dict:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{cli.port}/v1/chat/completions",
        json.dumps(body | fields).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["choices"][0]["message"]


@pytest.mark.parametrize("style", tiny.STYLES)
def test_a_model_of_another_family(style, workspace, tmp_path):
    """From the hub to a smoke that is answered: parsers, template, many at once."""
    repository = Repository.of(tiny.write(tmp_path / "model", style), f"org/{style}")
    hub, content = start(repository)
    words = ["--users", "3", "--context", "2048"]
    try:
        answer = served(workspace, style, f"org/{style}", *words, HF_ENDPOINT=hub.url)
    finally:
        for server in (hub, content):
            server.shutdown()
            server.server_close()
    assert {step["id"] for step in answer["steps"]} >= {"weights", "serve", "smoke"}
    # Qwen's thinks first, by default.
    said = {"qwen": ("seven times eight", "56"), "llama": (None, "Paris")}
    message = ask(workspace, style, "The capital of France?")
    assert (message["reasoning"], message["content"]) == said[style]


def test_random_weights_are_served_and_found_out(workspace, tmp_path):
    source = str(tiny.write(tmp_path / "model", "llama", scripted=False))
    words = ["--users", "2", "--context", "1024"]
    answer = served(workspace, "random", source, *words, code=1)
    assert answer["error"]["step"] == "smoke"
    assert "echo_wrong" in answer["error"]["message"]


def test_the_rehearsals_own_v3(workspace, tmp_path):
    checkpoint.write(tmp_path / "model", "v3")
    words = ["--users", "2", "--context", "2048", "--tool-call-parser", "deepseek_v3"]
    served(workspace, "mine", str(tmp_path / "model"), *words, until="serve")
    off = {"chat_template_kwargs": {"thinking": False}}
    assert ask(workspace, "mine", "ping", **off)["content"].startswith("The rehearsal model says")
