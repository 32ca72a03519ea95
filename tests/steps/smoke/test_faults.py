"""Each fault has its own verdict, and each verdict the layer at fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from runbook.protocol import StepFailure
from runbook.steps.smoke import Smoke
from runbook.steps.smoke.answers import Answer
from runbook.steps.smoke.ladder import LADDER
from runbook.steps.smoke.models import JsonSchema
from runbook.steps.smoke.schema import nonconformity
from runbook.steps.smoke.words import haystack

FAULTS = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text())
WEATHER = {
    "named_tool": {
        "prompt": "What is the weather in Paris?",
        "tools": [{"name": "get_weather"}],
        "expect_name": "get_weather",
        "expect_arguments": {"city": "Paris"},
    },
    "json_schema": {
        "prompt": "What is the weather in Paris?",
        "shape": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "celsius": {"type": "integer"}},
            "required": ["city", "celsius"],
            "additionalProperties": False,
        },
    },
}
EFFORTS = {"prompt": "ping", "default": "high"}
ALL = {
    **WEATHER,
    "efforts": EFFORTS,
    "concurrency": {"sequences": 8},
    "needle": {"tokens": 2000},
}


def asked(fault):
    asks = fault.get("asks", {})
    return {name: WEATHER[name] if case == "weather" else case for name, case in asks.items()}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["fault"])
def test_fault(server, fault):
    server.start(**fault["plan"])
    expected = {"speculation": {"prompts": ["ping"]}} | asked(fault)
    with pytest.raises(StepFailure) as caught:
        Smoke().apply(server.context(**expected))
    checks = json.loads((server.workspace / "smoke/result.json").read_text())["checks"]
    found = {v["code"]: v["layer"] for check in checks for v in check["failures"]}
    assert found == fault["verdicts"]
    assert all(f"at fault: {layer}" in caught.value.cause for layer in found.values())
    assert all(reason.remedy for reason in caught.value.reasons)


def test_all_checks_pass_and_say_what_they_saw_and_cost(server):
    server.start(thinks=True, effort="high")
    ctx = server.context(**ALL, about={"build": "w1", "profile": "mid"})
    Smoke().apply(ctx)
    result = json.loads((server.workspace / "smoke/result.json").read_text())
    assert result["about"]["build"] == "w1"
    assert [check["check"] for check in result["checks"]] == list(LADDER)
    assert all(check["passed"] and check["evidence"] for check in result["checks"])
    costs = {check["check"]: (check["requests"], check["tokens"]) for check in result["checks"]}
    assert costs["concurrency"] == (8, 8 * 18)
    assert costs["models"] == (0, 0)
    assert Smoke().check(ctx).outputs["checks"] == list(LADDER)


def test_a_key_is_sent_and_kept_out_of_the_result(server, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret-of-mine")
    server.start()
    with pytest.raises(StepFailure) as caught:
        Smoke().apply(server.context())
    assert caught.value.reasons[0].code == "models_unanswered"
    (tmp_path / "key").write_text("secret-of-mine\n")
    Smoke().apply(server.context(api_key_file=str(tmp_path / "key")))
    assert "secret-of-mine" not in (server.workspace / "smoke/result.json").read_text()


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("a <｜tool▁calls▁begin｜>", "<｜tool▁calls▁begin｜"),
        ("</think> b", "</think>"),
        ("<|im_end|>", "<|im_end|>"),
        ("<tool_call>{}", "<tool_call>"),
        ("if a < b | c > d: x <= 3", None),
        ("List<String> | <b>bold</b>", None),
    ],
)
def test_what_is_markup(text, leak):
    assert Answer(content=text).leaks() == leak
    assert Answer(reasoning=text).leaks() == leak


@pytest.mark.parametrize(
    ("value", "schema", "fault"),
    [
        ({"a": 1}, {"type": "object", "required": ["a"]}, None),
        ({}, {"type": "object", "required": ["a"]}, "it has no a"),
        ({"b": 1}, {"properties": {}, "additionalProperties": False}, "it has a b"),
        ({"a": "x"}, {"properties": {"a": {"type": "integer"}}}, "a is no integer"),
        (True, {"type": "integer"}, "it is no integer"),
        (True, {"type": "boolean"}, None),
        (1.5, {"type": "number"}, None),
        ([1, "x"], {"type": "array", "items": {"type": "integer"}}, "it[1] is no integer"),
        ("x", {"enum": ["y"]}, "it is 'x', none of ['y']"),
    ],
)
def test_schemas(value, schema, fault):
    assert nonconformity(value, schema) == fault


def test_a_schema_that_says_more_than_is_looked_at_is_refused():
    with pytest.raises(ValueError, match="pattern"):
        JsonSchema(prompt="p", shape={"properties": {"a": {"pattern": "x"}}})


def test_the_text_of_the_needle():
    text = haystack(30_000, 0.5, "otter-7")
    assert text.count("otter-7") == 1
    assert 0.4 < text.index("otter-7") / len(text) < 0.6
    assert len(text) / 5 > 20_000, "five characters a token are many"
