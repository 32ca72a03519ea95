"""`runbook tune` on servers whose pace depends on their flags."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from runbook.protocol import PreconditionNotMet
from runbook.steps.common.flags import profile_file
from runbook.steps.measure import choices
from tests.conftest import validate

QUICK = ("--repetitions", "3", "--requests", "1", "--output-length", "24", "--prompts", "random")
CHOICES = {
    "speculative_config.num_speculative_tokens": [1, 2, 3],
    "max_num_seqs": [8, 4],
}
GAPS = {"1": 0.02, "2": 0.004, "3": 0.03}


@pytest.fixture
def tunable(little):
    little.write(choices=CHOICES)
    little.behave(gaps=GAPS, refuses=["4"])
    return little


def pid(cli) -> int:
    state = json.loads((cli.workspace / "serve" / "state.json").read_text())
    return state["process"]["pid"]


@pytest.mark.harness
def test_the_choice_is_the_measured_best_and_its_file_serves(tunable):
    """Depth 2 is the quickest; four sequences do not serve, which is told and survived."""
    answer = tunable.json("tune", *QUICK)
    validate("tune", answer)
    assert answer["complete"] is True
    values = [one["values"] for one in answer["tried"]]
    depths = [v["speculative_config.num_speculative_tokens"] for v in values]
    assert depths == [1, 2, 3, 2], "the second choice is tried beside the best of the first"
    best = answer["best"]
    assert best["score"] == max(one["score"] for one in answer["tried"] if one["score"])
    assert best["values"] == {"speculative_config.num_speculative_tokens": 2, "max_num_seqs": 8}
    refused = answer["tried"][3]
    assert (refused["score"], refused["values"]["max_num_seqs"]) == (None, 4)
    assert refused["error"]
    made = yaml.safe_load(Path(answer["profile_file"]).read_text())
    assert made["speculative_config"] == {"method": "mtp", "num_speculative_tokens": 2}
    assert made["figures"][0]["value"] == best["point"]["output_tokens_per_second"]
    assert len(made["evidence"]["tried"]) == 4
    state = json.loads((tunable.workspace / "serve" / "state.json").read_text())
    assert '"num_speculative_tokens":2' in " ".join(state["spec"]["argv"])
    assert tunable.json("plan")["would_run"] is False
    profiles = tunable.json("profiles")
    assert profiles["ok"] is True


@pytest.mark.harness
def test_it_goes_on_after_a_kill_and_repeats_nothing(tunable):
    process = tunable.start("tune", *QUICK)
    record = None
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        (record,) = list((tunable.workspace / "tune").glob("*.jsonl")) or [None]
        if record is not None and len(record.read_text().splitlines()) >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = record.read_text()
    with record.open("a") as file:
        file.write('{"kind": "candidate", "val')
    tunable.run("wait", "--timeout", "60", code=None)
    done = tunable.run("tune", *QUICK)
    assert "measured before" in done.stderr
    assert record.read_text().startswith(before)
    values = [e["values"] for e in map(loaded, record.read_text().splitlines()) if "values" in e]
    assert len({json.dumps(v) for v in values}) == len(values) == 4


def loaded(line: str) -> dict:
    try:
        return json.loads(line)
    except ValueError:
        return {}


@pytest.mark.harness
def test_a_budget_ends_it_and_more_goes_on(tunable):
    first = tunable.json("tune", *QUICK, "--budget", "0")
    assert (first["complete"], len(first["tried"])) == (False, 1)
    assert first["best"]["values"]["speculative_config.num_speculative_tokens"] == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [({"choices": {}}, "nothing_to_tune"), ({"choices": CHOICES}, "nothing_serves")],
)
def test_what_cannot_be_tuned(little, change, code):
    little.write(**change)
    little.behave(fails=500, refuses=["8", "4"])
    little.write(start_timeout=5)
    assert little.json("tune", *QUICK, "--budget", "0", code=3)["error"]["code"] == code


FLAGS = SimpleNamespace(
    env=[{"A": "1"}, {"A": "2"}],
    extra_args=["--x"],
    max_num_seqs=None,
    speculative_config={"method": "mtp", "num_speculative_tokens": 1},
)


@pytest.mark.parametrize(
    ("name", "present", "value", "profile"),
    [
        ("env.A", "2", "3", {"env": [{"A": "3"}]}),
        ("env.B", choices.UNSET, 4, {"env": [{"B": "4"}]}),
        (
            "extra_args",
            [],
            ["--moe-backend", "marlin"],
            {"extra_args": ["--moe-backend", "marlin"]},
        ),
        ("extra_args", [], [], {}),
        ("max_num_seqs", choices.UNSET, 4, {"max_num_seqs": 4}),
        ("max_num_seqs", choices.UNSET, choices.UNSET, {}),
        (
            "speculative_config.num_speculative_tokens",
            1,
            2,
            {"speculative_config": {"method": "mtp", "num_speculative_tokens": 2}},
        ),
    ],
)
def test_a_choice_as_a_profile(name, present, value, profile):
    assert choices.present(FLAGS, name) == present
    assert choices.profile(FLAGS, {name: value}) == profile


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("max_num_seqs: many", "max_num_seqs"),
        ("speed: high", "speed"),
        ("- one", "dictionary"),
        ("a: [", "a: ["),
        ("[" * 100_000, "nested more than"),
        ("a: 2024-99-99", "month must be"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: \0", "a: \0"),
        ("extra_args: [--api-key, x]", "arguments"),
        (None, "No such file"),
    ],
)
def test_what_is_no_profile_file(tmp_path, text, cause):
    path = tmp_path / "profile.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PreconditionNotMet) as caught:
        profile_file.flags(path)
    assert caught.value.code == "bad_profile_file"
    if cause != text:
        assert cause in caught.value.cause
