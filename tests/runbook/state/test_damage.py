"""Every record can be lost or wrong: no verb ends with an internal error or waits for ever, and
`run` recovers."""

from __future__ import annotations

import json
import os
import shutil
from random import Random

import pytest
import yaml

from runbook.cli.main import invoke
from runbook.errors import EXIT_CODES, INTERNAL
from runbook.state import checkpoints
from runbook.state.workspace import Workspace
from tests.runbook.state import damage

pytestmark = pytest.mark.harness

VERBS = {
    "status": ["status"],
    "wait": ["wait", "--timeout", "0", "--since", "0"],
    "events": ["events"],
    "logs": ["logs", "one"],
    "plan": ["plan"],
    "cancel": ["cancel"],
    "destroy": ["destroy"],
    "run": ["run"],
}
SEEDS = {"flipped": 12, "truncated": 4, "wrong_types": 6}
# Below the workspace, but for the compiled document, which is below the home.
RECORDS = (
    ".runbook",
    ".runbook/lock",
    ".runbook/latest",
    ".runbook/owner.json",
    ".runbook/checkpoints",
    ".runbook/checkpoints/one.json",
    ".runbook/checkpoints/two.json",
    ".runbook/checkpoints.index.json",
    ".runbook/runs",
    ".runbook/runs/RUN",
    ".runbook/runs/RUN/journal.ndjson",
    ".runbook/runs/RUN/runbook.yaml",
    ".runbook/runs/RUN/one.1.log",
    "COMPILED",
)
CASES = [
    (record, way, seed)
    for record in RECORDS
    for way in damage.ALL
    for seed in range(SEEDS.get(way, 1))
]


def test_there_are_enough_cases():
    assert len(CASES) * len(VERBS) >= 500


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A home after two runs: in the first a step failed, the second made it good."""
    home = tmp_path_factory.mktemp("prepared")
    steps = [
        {"id": "one", "uses": "command", "with": {"run": "echo said; touch a", "creates": "a"}},
        {"id": "two", "uses": "command", "with": {"run": "test -e b", "creates": "b"}},
    ]
    (home / "book.yaml").write_text(yaml.safe_dump({"runbook": 1, "name": "t", "steps": steps}))
    patch = pytest.MonkeyPatch()
    patch.setattr(checkpoints, "MANY_STEPS", 2)
    settle(patch, home)
    assert call("run", home) == 1
    first = (home / "workspace/.runbook/latest").resolve()
    (home / "workspace/b").touch()
    assert call("run", home) == 0
    # What was attempted is told by the latest run, where the verbs look.
    second = (home / "workspace/.runbook/latest").resolve()
    journals = [run / "journal.ndjson" for run in (first, second)]
    journals[1].write_bytes(b"".join(journal.read_bytes() for journal in journals))
    shutil.copy(first / "one.1.log", second)
    (home / "run").write_text(second.name)
    yield home
    patch.undo()


def settle(patch, home):
    patch.setenv("HOME", str(home))
    patch.setenv("RUNBOOK_WORKSPACE", str(home / "workspace"))
    patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    patch.chdir(home)


def call(verb, prepared):
    """The exit code of a verb. The document stays where it is: a workspace knows its own."""
    name, *arguments = VERBS[verb]
    return invoke([name, str(prepared / "book.yaml"), *arguments, "--json"])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("record", "way", "seed"), CASES)
def test_a_damaged_record(prepared, tmp_path, monkeypatch, capfd, record, way, seed):
    home = tmp_path / "home"
    shutil.copytree(prepared, home, symlinks=True)
    settle(monkeypatch, home)
    # The clone is as new as its original: the index is believed by the time of its folder.
    source = (prepared / "workspace/.runbook/checkpoints").stat()
    os.utime(home / "workspace/.runbook/checkpoints", ns=(source.st_atime_ns, source.st_mtime_ns))
    if record == "COMPILED":
        paths = list((home / "cache/runbook/compiled").iterdir())
        assert paths
    else:
        paths = [home / "workspace" / record.replace("RUN", (home / "run").read_text())]
    for path in paths:
        damage.ALL[way](path, Random(seed))
    for verb in VERBS:
        code = call(verb, prepared)
        out, err = capfd.readouterr()
        assert code in EXIT_CODES and code != INTERNAL, (verb, out, err)
        assert "Traceback" not in out + err
        answers = [line for line in out.splitlines() if "schema" in json.loads(line)]
        assert len(answers) == 1, (verb, out)
    assert code == 0, (out, err)
    assert [step["state"] for step in json.loads(answers[0])["steps"]] == ["satisfied", "satisfied"]
    after = Workspace(home / "workspace")
    after.read_index(2)
    assert after.checkpoint("one") and after.checkpoint("two"), "what was lost is recorded anew"
