"""By the program as a user runs it: code beside the weights is named, approved by digest, and void
once it is changed."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import yaml

from tests.conftest import Cli

pytestmark = pytest.mark.harness

CODE = b"class Model: ...\n"


@pytest.fixture
def served(bench, tmp_path):
    """The program, with a book that serves a checkpoint with code and lets it run."""
    bench.configure(
        num_nextn_predict_layers=1,
        architectures=["X"],
        auto_map={"AutoModelForCausalLM": "modeling_x.Model"},
    )
    (bench.model / "modeling_x.py").write_bytes(CODE)
    made = Cli(tmp_path, tmp_path / "book.yaml")
    made.workspace = bench.workspace
    made.environment["RUNBOOK_WORKSPACE"] = str(bench.workspace)

    def write(*trusted: str) -> None:
        inputs = bench.inputs(trust_remote_code=True, trusted_code=list(trusted))
        step = {"id": "serve", "uses": "serve", "with": inputs}
        made.book.write_text(yaml.safe_dump({"runbook": 1, "name": "coded", "steps": [step]}))

    write()
    yield made, write
    made.run("destroy", "--yes")


def refused(answer, digest: str) -> str:
    """The digests that the remedy says to add."""
    said = json.dumps(answer)
    assert "code_not_approved" in said and "modeling_x.py" in said
    named = re.search(r"`trusted_code`: ([0-9a-f, ]+)", said)[1]
    assert digest in named
    return named


def test_code_runs_only_as_it_was_approved(bench, served):
    cli, write = served
    digest = hashlib.sha256(CODE).hexdigest()
    found = Cli(cli.home).json("lint", str(bench.model), code=3)["findings"]
    [code] = [f for f in found if f["id"] == "custom_code"]
    assert "modeling_x.Model" in code["detail"]
    assert code["tensors"] == [f"modeling_x.py sha256:{digest}"]

    named = refused(cli.json("run", code=3), digest)
    assert bench.service is None, "nothing was started"
    write(*named.split(", "))
    cli.json("run")
    pid = bench.service.process.pid

    changed = CODE + b"import os\n"
    (bench.model / "modeling_x.py").write_bytes(changed)
    refused(cli.json("check", code=3), hashlib.sha256(changed).hexdigest())
    refused(cli.json("run", code=3), hashlib.sha256(changed).hexdigest())
    assert bench.service.process.pid == pid, "what runs was not started again"
    (bench.model / "modeling_x.py").write_bytes(CODE)
    cli.json("check")
