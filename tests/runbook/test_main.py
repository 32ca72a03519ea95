"""Standard streams that are closed, full or without a reader."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from tests.runbook.helpers import write_book

STREAMS = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1", "2>/dev/full"]
STREAMS += ["| true", "2>&1 | true"]
VERBS = ["run", "status", "plan", "check", "events", "logs", "destroy", "validate", "nonsense"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("streams")


def call(cli, redirection, verb, *arguments):
    words = [word for word in cli.argv(verb, *arguments) if word]
    if verb == "logs":
        words.append("one")
    script = f"{shlex.join(words)} {redirection}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        env=cli.environment,
        cwd=cli.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("verbs", [VERBS[:1], pytest.param(VERBS, marks=pytest.mark.harness)])
@pytest.mark.parametrize("redirection", STREAMS)
def test_odd_streams(cli, redirection, verbs):
    cli.book = write_book(cli.home, {"id": "one"})
    for form in ((), ("--json",))[: len(verbs)]:
        for verb in verbs:
            done = call(cli, redirection, verb, *form)
            said = done.stdout + done.stderr
            assert "Traceback" not in said and "Exception ignored" not in said, said
            assert done.returncode not in (1, 70, 120), (verb, done.returncode, said)
            if redirection == ">/dev/full" and (form or verb not in ("logs", "nonsense")):
                assert "standard output cannot be written: No space left" in done.stderr
                assert done.returncode != 0
            if redirection in ("<&-", "2>&-", "2>/dev/full") and form:
                assert json.loads(done.stdout.splitlines()[-1])["kind"] in (verb, "runbook")
    assert (cli.workspace / "diary").read_text().splitlines() == ["one began", "one ended"]
