"""The rehearsal for real: the real vLLM, in a workspace of its own."""

from __future__ import annotations

import json
import os
import shlex
import sys
import urllib.request
from pathlib import Path

import pytest

from runbook.process import Identity
from runbook.steps.common.facts import cpu
from tests.conftest import Cli, free_port
from tests.e2e.agent import shell

SERVES_V4: bool = cpu()["avx512_bf16"]
needs_v4 = pytest.mark.skipif(not SERVES_V4, reason="DeepSeek-V4 on CPU needs avx512_bf16")


class Rehearsal(Cli):
    """`runbook ... rehearsal` with a port of its own; caches are the user's, as for anyone."""

    def __init__(self, home, port: int) -> None:
        super().__init__(home, "rehearsal")
        self.environment["HOME"] = os.environ["HOME"]
        if cache := os.environ.get("RUNBOOK_CACHE"):
            self.environment["RUNBOOK_CACHE"] = cache
        self.environment["RUNBOOK_PORT"] = str(port)
        self.port = port

    def checkpoint(self, step: str) -> dict:
        path = self.workspace / ".runbook" / "checkpoints" / f"{step}.json"
        return json.loads(path.read_text())

    def service(self, step: str) -> Identity:
        identity = Identity.load(self.checkpoint(step)["outputs"]["process"])
        assert identity is not None
        return identity

    def ask(self, text: str) -> str:
        """The answer of the served model, asked as any client would."""
        body = {
            "model": "rehearsal",
            "messages": [{"role": "user", "content": text}],
            "chat_template_kwargs": {"thinking": False},
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    def shell(self, line: str) -> tuple[int, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        told = {**self.environment, "AI_AGENT": "scripted", "PATH": path}
        return shell(shlex.split(line), told, self.home)

    def run(self, verb, *arguments, code=0, timeout=1800, **environment):
        return super().run(verb, *arguments, code=code, timeout=timeout, **environment)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    cli = Rehearsal(tmp_path_factory.mktemp("rehearsal"), free_port())
    yield cli
    cli.run("cancel")
    cli.run("destroy", "serve", "publish", "--yes")
