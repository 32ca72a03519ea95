"""A book whose server streams at a known pace, run by the real program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli, free_port

ENGINE = Path(__file__).with_name("engine.py")


class Little(Cli):
    """`runbook ... little`: one step, which serves."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, home / "little.yaml")
        self.plan = home / "plan.json"
        self.behave()
        vllm = home / "vllm"
        vllm.write_text(f'#!/bin/sh\nexec {sys.executable} {ENGINE} "$@"\n')
        vllm.chmod(0o755)
        model = home / "model"
        model.mkdir()
        config = {"num_nextn_predict_layers": 1, "vocab_size": 1000}
        (model / "config.json").write_text(json.dumps(config))
        self.serve = {
            "vllm": str(vllm),
            "model": str(model),
            "served_model_name": "little",
            "port": free_port(),
            "max_num_seqs": 8,
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
            "env": [{"ENGINE_PLAN": str(self.plan)}],
            "digests": {"build": "b1"},
            "start_timeout": 60,
            "stop_grace": 5,
            "near_limit": 0,
            "supervisor": "session",
            "profile_file": "{{ inputs.profile_file }}",
        }
        self.write()

    def write(self, **changes) -> None:
        self.serve |= changes
        step = {"id": "serve", "uses": "serve", "with": self.serve}
        inputs = {"profile_file": {"type": "path", "default": None, "description": "flags"}}
        document = {"runbook": 1, "name": "little", "inputs": inputs, "steps": [step]}
        self.book.write_text(yaml.safe_dump(document, sort_keys=False))

    def behave(self, **plan) -> None:
        self.plan.write_text(json.dumps(plan))

    def requests(self) -> list:
        path = self.home / "requests.ndjson"
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def little(tmp_path):
    """Not served yet."""
    cli = Little(tmp_path)
    yield cli
    cli.run("cancel", code=None)
    cli.run("destroy", "--yes", code=None)


@pytest.fixture(scope="module")
def _served(tmp_path_factory):
    cli = Little(tmp_path_factory.mktemp("served"))
    cli.run("run")
    yield cli
    cli.run("destroy", "--yes")


@pytest.fixture
def served(_served):
    """Served, by one server for all tests of a module; what was asked before is forgotten."""
    _served.behave()
    (_served.home / "requests.ndjson").unlink(missing_ok=True)
    return _served
