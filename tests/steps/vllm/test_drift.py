"""By the program as a user runs it: an installed file that was altered is named, and the commands
that the answers give put it right as they stand."""

from __future__ import annotations

import os
import shlex

import pytest
import yaml

from tests.conftest import Cli

pytestmark = pytest.mark.harness


@pytest.mark.parametrize(
    ("name", "deep"), [("vllm/model.py", False), ("tiny_dep/__init__.py", True)]
)
def test_the_commands_of_drift_mend_it(world, tmp_path, name, deep):
    inputs = {
        "mode": "wheel",
        "target": "1.2.0",
        "series": str(world.target),
        "lock": str(world.lock),
    }
    step = {"id": "build", "uses": "vllm", "with": inputs}
    book = tmp_path / "book.yaml"
    book.write_text(yaml.safe_dump({"runbook": 1, "name": "drift", "steps": [step]}))
    cli = Cli(tmp_path, book)
    cli.environment["RUNBOOK_CACHE"] = str(world.cache)
    cli.json("run")
    (file,) = (cli.workspace / "venv").glob(f"lib/*/site-packages/{name}")
    whole, stat = file.read_bytes(), file.stat()
    file.unlink()
    file.write_bytes(b"#" + whole[1:])
    if deep:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    flags = ["--deep"] if deep else []
    answer = cli.json("check", *flags, code=3)
    assert name in answer["error"]["cause"] or name in str(answer["steps"])
    verb, *given = shlex.split(answer["next"][0])[1:]
    assert verb == "run"
    plain = Cli(tmp_path)
    plain.environment = cli.environment
    plain.json(verb, *given)
    (file,) = (cli.workspace / "venv").glob(f"lib/*/site-packages/{name}")
    assert file.read_bytes() == whole
    cli.json("check", "--deep")
