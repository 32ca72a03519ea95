"""A `vllm` that behaves as the test says, and servers that never outlive it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from runbook.planning.context import console
from runbook.process import session_members
from runbook.steps.common.service import Service
from runbook.steps.serve import Serve
from runbook.steps.serve.models import Inputs
from tests.conftest import free_port

STAND_IN = Path(__file__).with_name("stand_in.py")
READY = (Path(__file__).parent / "logs" / "ready.log").read_text()


class Bench:
    """One workspace with a model, a program `vllm`, and the step's inputs for them."""

    def __init__(self, folder: Path) -> None:
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        self.plan = folder / "plan.json"
        self.behave(log=READY)
        self.vllm = folder / "vllm"
        self.vllm.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
        self.vllm.chmod(0o755)
        self.model = folder / "model"
        self.model.mkdir()
        self.configure(num_nextn_predict_layers=1)
        self.port = free_port()
        self.progress: list[tuple] = []
        self.sessions: set[int] = set()

    def behave(self, **plan) -> None:
        self.plan.write_text(json.dumps(plan))

    def configure(self, **config) -> None:
        (self.model / "config.json").write_text(json.dumps(config))

    def inputs(self, **changes) -> dict:
        values = {
            "vllm": str(self.vllm),
            "model": str(self.model),
            "served_model_name": "rehearsal",
            "port": self.port,
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
            "env": [{"VLLM_STAND_IN": str(self.plan)}],
            "start_timeout": 30,
            "stop_grace": 5,
            "supervisor": "session",
        }
        return Inputs(**values | changes).model_dump(mode="json")

    def context(self, **changes):
        return console(
            "serve",
            self.workspace,
            self.inputs(**changes),
            cache=self.workspace.parent / "cache",
            on_progress=lambda told: self.progress.append(tuple(told.values())[:4]),
        )

    @property
    def service(self) -> Service | None:
        service = Service.load(self.workspace / "serve")
        if service is not None:
            self.sessions.add(service.process.pid)
        return service

    def requests(self) -> list[dict]:
        lines = (self.workspace / "serve" / "requests.ndjson").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        service = self.service
        if service is not None:
            service.stop(0)
        for session in self.sessions:
            assert session_members(session) == []


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("runbook.steps.common.startup.POLL_SECONDS", 0.02)
    monkeypatch.setattr("runbook.steps.common.starting.sampler.open_gpus", lambda: None)
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def step():
    return Serve()
