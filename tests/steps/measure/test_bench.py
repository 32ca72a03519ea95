"""`runbook bench` against a server whose pace is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import validate

pytestmark = pytest.mark.harness

QUICK = ("--repetitions", "3", "--requests", "2", "--output-length", "20")


def measured(cli, *arguments, code=0):
    answer = cli.json("bench", *QUICK, *arguments, code=code)
    validate("bench", answer)
    return answer


def test_figures_are_those_of_the_server(served):
    """20 tokens, the first after 60 ms, ten events of two tokens 10 ms apart: 150 ms."""
    served.behave(first=0.06, gap=0.01, tokens=2)
    answer = measured(served, "--concurrency", "1,4", "--input-length", "33")
    one, four = answer["points"]
    assert one["ttft_seconds"]["median"] == pytest.approx(0.06, abs=0.02)
    assert one["itl_seconds"]["median"] == pytest.approx(0.01, abs=0.004)
    assert one["tpot_seconds"]["median"] == pytest.approx(0.09 / 19, abs=0.003)
    assert one["output_tokens_per_second"] < 20 / 0.15
    assert four["output_tokens_per_second"] > 2 * one["output_tokens_per_second"]
    assert (one["acceptance"], one["tokens_per_pass"]) == (1.0, 2.0)
    assert [r["output_tokens"] for r in four["repetitions"]] == [4 * 2 * 20] * 3
    assert [r["input_tokens"] for r in four["repetitions"]] == [4 * 2 * 33] * 3
    assert all(r["client_cpu"] < 1 for r in four["repetitions"])
    asked = [request for path, request in served.requests() if path == "/v1/completions"]
    assert all(10 <= token < 900 for request in asked for token in request["prompt"])
    assert len({str(request["prompt"]) for request in asked}) > 25, "the cache would answer"


def test_a_result_is_kept_with_what_it_holds_for(served):
    answer = measured(served)
    entries = [json.loads(line) for line in Path(answer["result"]).read_text().splitlines()]
    assert [e["kind"] for e in entries] == ["about"] + ["repetition"] * 3 + ["point"]
    about = entries[0]
    assert about["digests"] == {"build": "b1"}
    assert about["vllm"] == "0.32.0"
    assert "--speculative-config" in about["flags"]
    assert Path(answer["result"]).parent == served.workspace / "bench"
    page = served.json("report")["path"]
    assert f"{entries[-1]['output_tokens_per_second']:.1f}" in Path(page).read_text()
    table = served.run("bench", *QUICK).stdout
    assert table.splitlines()[0].split()[:2] == ["streams", "tokens/s"]


def test_texts_come_to_their_length(served):
    measured(served, "--prompts", "code", "--input-length", "300", "--heed-eos", "--thinking")
    asked = [request for path, request in served.requests() if path == "/v1/chat/completions"]
    for request in asked:
        text = request["messages"][0]["content"]
        assert abs(len(text) // 3 + 5 - 300) <= 4
        assert (request["ignore_eos"], request["temperature"]) == (False, 0)
        assert request["chat_template_kwargs"] == {"thinking": True}


def test_prompts_of_a_file(served):
    prompts = served.home / "prompts.jsonl"
    prompts.write_text('{"prompt": "one?"}\n\n{"prompt": "two?"}\n')
    measured(served, "--prompts", "file", "--prompts-file", str(prompts))
    asked = [r["messages"][0]["content"] for p, r in served.requests() if "chat" in p]
    assert set(asked[-6:]) == {"one?", "two?"}
    prompts.write_text('{"prompt": "one?"}\n{"text": "two?"}\n')
    error = measured(served, "--prompts", "file", "--prompts-file", str(prompts), code=2)["error"]
    assert (error["code"], error["where"]) == ("bad_prompts", str(prompts))
    assert "prompt 2" in error["cause"]


def test_a_server_that_became_slower_is_told(served):
    served.behave(first=0.02, gap=0.004)
    before = measured(served)
    again = measured(served, "--against", before["result"], "--tolerance", "30")
    assert {one["outcome"] for one in again["compared"]} == {"same"}
    served.behave(first=0.02, gap=0.02)
    answer = measured(served, "--against", Path(before["result"]).name, code=3)
    assert answer["error"]["code"] == "regression"
    outcomes = {one["figure"]: one["outcome"] for one in answer["compared"]}
    assert outcomes["output_tokens_per_second"] == outcomes["tpot_seconds"] == "worse"
    assert "tpot_seconds at 1" in answer["error"]["cause"]
    served.behave(first=0.02, gap=0.004)
    better = measured(served, "--against", answer["result"])
    assert better["ok"] is True
    outcomes = {one["figure"]: one["outcome"] for one in better["compared"]}
    assert outcomes["output_tokens_per_second"] == outcomes["tpot_seconds"] == "better"
    other = measured(served, "--against", before["result"], "--input-length", "9", code=3)
    assert other["error"]["code"] == "not_comparable"


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ({"fails": 500}, "requests_failed"),
        ({"broken": "data: {no\n\n"}, "requests_failed"),
        ({"broken": 'data: {"error": {"message": "CUDA error"}}\n\n'}, "requests_failed"),
        ({"running": 3}, "server_busy"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(served, plan, code):
    served.behave(**plan)
    answer = served.json("bench", *QUICK, code=3)
    assert answer["error"]["code"] == code
    assert answer["error"]["cause"]


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("--concurrency", "two"), "usage", 2),
        (("--prompts", "poem"), "usage", 2),
        (("--prompts", "file"), "usage", 2),
        (("--output-length", "1"), "usage", 2),
        (("--against", "nothing.jsonl"), "no_result", 2),
        ((), "not_served", 3),
    ],
)
def test_refusals(little, arguments, code, exit_code):
    answer = little.json("bench", *arguments, code=exit_code)
    assert answer["error"]["code"] == code
    assert answer["error"]["remedy"]
    validate("bench", answer)
