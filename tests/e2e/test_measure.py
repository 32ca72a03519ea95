"""What is measured of the rehearsal: what an agent reads until it is served, speed, answers, its
best flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import validate
from tests.e2e.agent import Agent
from tests.e2e.test_rehearsal import ANSWER

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SHORT = ("--input-length", "16", "--output-length", "16", "--repetitions", "3", "--requests", "1")
TASK = {
    "task": "rehearsal_words",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": []},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def test_from_nothing_to_served_an_agent_reads_little(rehearsal):
    agent = Agent(rehearsal.shell, tell=lambda said: False, ask=lambda question: False)
    served = agent.set_up("rehearsal")
    status = agent.call("runbook status rehearsal")
    assert served == status.answer["served"]
    assert rehearsal.ask("ping") == ANSWER
    assert status.size <= 600
    assert agent.read <= 8000


def test_bench(rehearsal):
    rehearsal.json("run")
    answer = rehearsal.json("bench", *SHORT, "--concurrency", "1,2")
    validate("bench", answer)
    for point in answer["points"]:
        assert [one["output_tokens"] for one in point["repetitions"]] == [
            16 * point["asked"]["concurrency"]
        ] * 3
        assert 1 <= point["tokens_per_pass"] <= 2
    assert answer["about"]["vllm"].startswith("0.32.0")
    prose = rehearsal.json("bench", "--prompts", "prose", *SHORT[2:], "--input-length", "400")
    asked = prose["points"][0]["repetitions"][0]
    assert abs(asked["input_tokens"] - 400) <= 4


def test_eval_with_a_task_of_ones_own(rehearsal, tmp_path):
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(TASK))
    lines = [{"question": "ping", "answer": ANSWER}, {"question": "ping", "answer": "pang"}]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = rehearsal.json("eval", "--task", str(tmp_path / "words.yaml"))
    validate("eval", answer)
    assert (answer["score"], answer["n"], answer["empty"]) == (0.5, 2, 0)
    assert answer["interval"] == pytest.approx([0.0945, 0.9055], abs=1e-3)


def test_tune_serves_the_measured_best(rehearsal):
    answer = rehearsal.json("tune", *SHORT, "--prompts", "random")
    validate("tune", answer)
    scores = [one["score"] for one in answer["tried"] if one["score"] is not None]
    assert answer["best"]["score"] == max(scores)
    assert len(answer["tried"]) == 3
    made = yaml.safe_load(Path(answer["profile_file"]).read_text())
    assert made["evidence"]["tried"]
    assert rehearsal.json("plan")["would_run"] is False
    assert rehearsal.ask("ping") == ANSWER
    again = rehearsal.run("tune", *SHORT, "--prompts", "random")
    assert again.stderr.count("measured before") == 3
