"""A log from anywhere, as a file or on standard input."""

from __future__ import annotations

import json
import subprocess

import yaml

LOG = """\
loading
Traceback (most recent call last):
  File "work.py", line 3, in <module>
ImportError: libcudart.so.13: cannot open shared object file: No such file or directory
"""


def test_a_log_on_standard_input(cli):
    argv = [*cli.argv("diagnose"), "--json"]
    process = subprocess.run(argv, input=LOG, capture_output=True, text=True, check=True)
    answer = json.loads(process.stdout)
    assert answer["root"]["kind"] == "ImportError"
    assert answer["root"]["line"] == 4
    assert answer["found"]
    assert answer["diagnosis"]["code"] == "cuda_runtime_missing"
    assert answer["lines"] == LOG.splitlines()


def test_a_file_for_people(cli):
    (cli.home / "x.log").write_text(LOG.replace("Traceback (most recent call last):", "at"))
    said = cli.run("diagnose", "x.log").stdout
    assert "cuda_runtime_missing: vLLM was built for another CUDA major version" in said
    assert "remedy: `runbook run --from vllm`" in said


def test_a_log_of_no_failure(cli):
    (cli.home / "x.log").write_text("all is well\n")
    answer = cli.json("diagnose", "x.log")
    assert (answer["root"], answer["lines"], answer["diagnosis"]) == (None, [], None)
    assert json.loads(cli.run("diagnose", "x.log", "--brief").stdout)["found"] is False


def test_the_traceback_of_a_command_step(cli):
    script = "import json\nprint('reading')\njson.loads('{')\n"
    run = ["python3", "-c", script]
    step = {"id": "one", "uses": "command", "with": {"run": run}}
    cli.book = cli.home / "book.yaml"
    cli.book.write_text(yaml.safe_dump({"runbook": 1, "name": "test", "steps": [step]}))
    error = cli.json("run", code=1)["error"]
    assert error["cause"].startswith("json.decoder.JSONDecodeError: Expecting property name")
    shown = cli.json("logs", "one", "--errors")["lines"]
    assert error["cause"] in shown
    assert any(line.startswith('  File "') for line in shown), "with what led there"


def test_a_log_that_is_not_there(cli):
    assert cli.json("diagnose", "none.log", code=2)["error"]["code"] == "not_readable"
