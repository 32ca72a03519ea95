"""A server with vLLM's endpoints and recorded answers, in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runbook.planning.context import console
from runbook.process import Identity
from runbook.steps.smoke.models import Inputs
from tests.conftest import free_port

STAND_IN = Path(__file__).parents[1] / "serve" / "stand_in.py"
ANSWER = "The rehearsal model says pong: one two three four five six seven eight nine ten."
REASONING = "I was asked to answer in a fixed way so I will"
NO = {"thinking": False}
YES = {"thinking": True}


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = folder / "plan.json"
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        self.process: subprocess.Popen | None = None

    def start(self, **plan) -> None:
        self.stop()
        self.plan.write_text(json.dumps(plan))
        self.port = free_port()
        argv = ["serve", "model", "--served-model-name", "rehearsal"]
        argv += ["--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, str(STAND_IN), *argv],
            env={**os.environ, "VLLM_STAND_IN": str(self.plan)},
            cwd=self.folder,
        )
        identity = Identity.of(self.process.pid)
        assert identity is not None
        self.identity = identity
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError("the server does not listen")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def requests(self) -> list[dict]:
        return [json.loads(r) for r in (self.folder / "requests.ndjson").read_text().splitlines()]

    def context(self, deep=False, **changes):
        """The rehearsal's questions."""
        tool = {"name": "get_weather", "parameters": {"type": "object"}}
        questions = {
            "endpoint": f"http://127.0.0.1:{self.port}/v1",
            "model": "rehearsal",
            "process": self.identity.dump(),
            "echo": {"prompt": "ping", "expect": ANSWER, "chat_template_kwargs": NO},
            "reasoning": {
                "prompt": "ping",
                "expect": REASONING,
                "expect_answer": ANSWER,
                "chat_template_kwargs": YES,
            },
            "tool_call": {
                "prompt": "What is the weather in Paris?",
                "tools": [tool],
                "expect_name": "get_weather",
                "expect_arguments": {"city": "Paris"},
                "chat_template_kwargs": NO,
            },
            "speculation": {
                "prompts": ["ping"],
                "expect": {"drafted": 10, "accepted": 7},
                "chat_template_kwargs": NO,
            },
            "speed": {"prompt": "ping", "chat_template_kwargs": YES},
        }
        inputs = Inputs(**questions | changes).model_dump(mode="json")
        return console("smoke", self.workspace, inputs, deep=deep)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("runbook.steps.smoke.client.SETTLE_POLL", 0.01)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    made = Server(tmp_path)
    yield made
    made.stop()
