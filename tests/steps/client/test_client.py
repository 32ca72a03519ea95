"""What is told of a served model, and each snippet run as it stands against a server that answers
what vLLM was recorded to answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from runbook.protocol import PreconditionNotMet
from runbook.steps.client import client
from tests.conftest import Cli, free_port
from tests.steps.smoke.conftest import STAND_IN, server

__all__ = ["server"]

ADVICE = {
    "efforts": ["low", "high", "max"],
    "default_effort": "high",
    "without_reasoning": {"chat_template_kwargs": {"thinking": False}},
    "sampling": {
        "agents": {"temperature": 1.0, "top_p": 0.95},
        "otherwise": {"temperature": 1.0, "top_p": None},
    },
    "max_output_tokens": 393216,
}
SECRET = "secret-of-mine"
READY = STAND_IN.with_name("logs") / "ready.log"


def book(server, *, key=None, outputs=True, uses="serve", **given):
    """A book with a step that serves, and what it recorded."""
    flags = {"reasoning_parser": "deepseek_v4", "enable_auto_tool_choice": True}
    found = {
        "endpoint": f"http://127.0.0.1:{server.port}/v1" if outputs else None,
        "model": "rehearsal",
        "api_key_file": key,
    }
    step = {
        "id": "serve",
        "uses": uses,
        "with": {"flags": flags, "reasoning_parser": None, "client": ADVICE, **given},
        "outputs": found if outputs else None,
    }
    return {"name": "little", "steps": [{"id": "x", "uses": "smoke", "with": {}}, step]}


def shell(text, folder, **environment):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_profile_says_counts(server):
    server.start()
    profiles = {"p": {"reasoning_parser": "deepseek_v3", "enable_auto_tool_choice": False}}
    body = client(book=book(server, flags=None, profile="p", profiles=profiles))["body"]
    assert body["reasoning"] is not None
    assert body["tools"] is False


def test_what_is_told(server):
    server.start()
    said = client(book=book(server))
    body, text = said["body"], said["verbatim"]
    assert body["base_url"] == f"http://127.0.0.1:{server.port}/v1"
    assert body["models"] == ["rehearsal"] and body["context"] == 4096
    assert body["reasoning"] == {
        "fields": ["reasoning", "reasoning_content"],
        "efforts": ["low", "high", "max"],
        "default_effort": "high",
        "off": {"chat_template_kwargs": {"thinking": False}},
    }
    assert body["sampling"] == {
        "agents": {"temperature": 1.0, "top_p": 0.95},
        "otherwise": {"temperature": 1.0},
    }
    assert body["tools"] is True and body["api_key_file"] is None
    for words in ("high (default)", "agents: temperature 1, top_p 0.95", "393,216 of output"):
        assert words in text
    assert all(snippet in text for snippet in body["snippets"].values())


def test_a_book_that_says_nothing_of_it(server):
    server.start()
    body = client(book=book(server, flags=None, client=None))["body"]
    assert body["reasoning"] is None and body["sampling"] == {} and body["tools"] is False
    assert "reasoning" not in body["snippets"]["python"]
    shell(body["snippets"]["curl"], server.folder)
    assert set(server.requests()[-1]) == {"model", "messages"}


def test_environment_and_curl_run_as_they_stand(server):
    server.start()
    snippets = client(book=book(server))["body"]["snippets"]
    told = shell(
        snippets["environment"] + '\necho "$OPENAI_BASE_URL $OPENAI_API_KEY $OPENAI_MODEL"',
        server.folder,
    )
    assert told.split() == [f"http://127.0.0.1:{server.port}/v1", "none", "rehearsal"]
    answer = json.loads(shell(snippets["curl"], server.folder))
    assert answer["choices"][0]["message"]["content"]
    asked = server.requests()[-1]
    assert (asked["temperature"], asked["top_p"], asked["reasoning_effort"]) == (1.0, 0.95, "high")


def test_a_key_is_read_from_its_file_and_stands_in_no_snippet(server, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    server.start()
    key = tmp_path / "a key"
    key.write_text(f"{SECRET}\n")
    body = client(book=book(server, key=str(key)))["body"]
    assert body["models"] == ["rehearsal"]
    assert SECRET not in json.dumps(body)
    watched = 'curl() { printf "%s\\n" "$@" > arguments; command curl "$@"; }\n'
    answer = json.loads(shell(watched + body["snippets"]["curl"], server.folder))
    assert answer["choices"]
    arguments = (server.folder / "arguments").read_text()
    assert "-H" in arguments and SECRET not in arguments, "all users can read arguments"
    told = shell(body["snippets"]["environment"] + '\necho "$OPENAI_API_KEY"', server.folder)
    assert told.strip() == SECRET
    key.unlink()
    with pytest.raises(PreconditionNotMet) as caught:
        client(book=book(server, key=str(key)))
    assert caught.value.code == "api_key_missing"


def test_the_program_compiles_and_has_the_key_s_file(server, tmp_path):
    server.start()
    for key in (None, str(tmp_path / "key")):
        if key:
            Path(key).write_text("k")
        program = client(book=book(server, key=key))["body"]["snippets"]["python"]
        compile(program, "snippet", "exec")
        assert ("read_text" in program) == bool(key)


@pytest.mark.network
@pytest.mark.parametrize("keyed", [False, True])
def test_the_program_runs_as_it_stands(server, tmp_path, monkeypatch, keyed):
    """With the newest `openai` of the package index."""
    packages = tmp_path / "packages"
    install = ["-m", "uv", "pip", "install", "-q", "--target", str(packages), "openai"]
    subprocess.run([sys.executable, *install], check=True)
    if keyed:
        monkeypatch.setenv("VLLM_API_KEY", SECRET)
        (tmp_path / "key").write_text(SECRET)
    server.start()
    given = book(server, key=str(tmp_path / "key") if keyed else None)
    (tmp_path / "ask.py").write_text(client(book=given)["body"]["snippets"]["python"])
    told = shell(f"{sys.executable} ask.py", tmp_path, PYTHONPATH=str(packages))
    reasoning, *content = told.splitlines()
    assert reasoning.startswith("reasoning: I was asked") and content
    asked = server.requests()[-1]
    assert (asked["temperature"], asked["top_p"], asked["reasoning_effort"]) == (1.0, 0.95, "high")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"uses": "command"}, "no step of the kind `serve`"),
        ({"outputs": False}, "no server was started"),
        ({}, "its server is refused"),
    ],
)
def test_without_a_served_model_it_says_what_to_do(server, how, told):
    server.port = 9  # nobody listens
    with pytest.raises(PreconditionNotMet) as caught:
        client(book=book(server, **how))
    assert caught.value.code == "not_served"
    assert told in caught.value.cause and caught.value.remedy


@pytest.mark.parametrize("name", ["deepseek-v4-flash", "deepseek-v4-flash-0731", "rehearsal"])
def test_a_shipped_book_before_it_serves(tmp_path, name):
    cli = Cli(tmp_path, name)
    answer = cli.json("client", code=3)
    assert answer["error"]["code"] == "not_served"
    assert answer["error"]["remedy"] == f"runbook run {name}"


def test_the_verb_on_a_server_that_it_finds_in_the_workspace(tmp_path):
    """The real program, on a book whose server is played."""
    vllm = tmp_path / "vllm"
    vllm.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    vllm.chmod(0o755)
    (tmp_path / "plan.json").write_text(json.dumps({"log": READY.read_text()}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"vocab_size": 1000}')
    given = {
        "vllm": str(vllm),
        "model": str(tmp_path / "model"),
        "served_model_name": "rehearsal",
        "port": free_port(),
        "flags": {
            "reasoning_parser": "deepseek_v4",
            "env": [{"VLLM_STAND_IN": str(tmp_path / "plan.json")}],
        },
        "client": ADVICE,
        "supervisor": "session",
    }
    book = {"runbook": 1, "name": "little", "steps": [{"id": "serve", "uses": "serve",
                                                       "with": given}]}  # fmt: skip
    (tmp_path / "little.yaml").write_text(yaml.safe_dump(book))
    cli = Cli(tmp_path, tmp_path / "little.yaml")
    cli.run("run")
    try:
        answer = cli.json("client")
        assert answer["models"] == ["rehearsal"]
        assert answer["reasoning"]["efforts"] == ["low", "high", "max"]
        text = cli.run("client").stdout
        assert all(snippet in text for snippet in answer["snippets"].values())
    finally:
        cli.run("destroy", "--yes")
    assert cli.json("client", code=3)["error"]["remedy"].startswith("runbook run ")


def test_a_server_that_asks_for_another_key(server, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    server.start()
    with pytest.raises(PreconditionNotMet) as caught:
        client(book=book(server))
    assert "401" in caught.value.cause
