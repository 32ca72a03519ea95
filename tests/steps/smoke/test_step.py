"""The smoke test against a server that answers what vLLM 0.32.0 was recorded to answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runbook.protocol import StepFailure
from runbook.steps.smoke import Smoke
from runbook.steps.smoke.answers import Timing
from runbook.steps.smoke.client import Client
from runbook.steps.smoke.models import Outputs

STEP = Smoke()
ANSWERS = Path(__file__).parent / "answers"


def codes(check):
    return [reason.code for reason in check.reasons]


def failures(server, **changes):
    """The codes of what fails, each proven to come with a message and a remedy."""
    with pytest.raises(StepFailure) as caught:
        STEP.apply(server.context(**changes))
    failure = caught.value
    assert failure.code == "smoke_failed"
    assert failure.remedy
    assert all(reason.message and reason.remedy for reason in failure.reasons)
    assert all(reason.message in failure.cause for reason in failure.reasons)
    assert not STEP.check(server.context(**changes)).ok
    return [reason.code for reason in failure.reasons]


REACHED = {"tokens_per_second": 10**6, "ttft_seconds": None, "source": "a card"}


class TestGood:
    def test_all_is_asked_and_check_holds_then(self, server):
        server.start()
        ctx = server.context()
        assert codes(STEP.check(ctx)) == ["not_asked"]
        STEP.apply(ctx)
        check = STEP.check(ctx)
        assert check.ok
        outputs = Outputs.model_validate(check.outputs)
        assert (outputs.drafted, outputs.accepted, outputs.acceptance) == (10, 7, 0.7)
        assert (outputs.acceptance_by_position, outputs.tokens_per_step) == ([0.7], 1.7)
        assert outputs.ttft_seconds is not None
        assert outputs.decode_tokens_per_second is not None

    def test_the_requests_are_what_they_should_be(self, server):
        server.start()
        STEP.apply(server.context())
        echo, whole, cut, reasoning, tool, streamed, speculation, speed = server.requests()
        assert whole == echo == cut | {"max_tokens": 128}
        assert streamed == tool | {"stream": True, "stream_options": {"include_usage": True}}
        assert echo == {
            "model": "rehearsal",
            "messages": [{"role": "user", "content": "ping"}],
            "max_tokens": 128,
            "temperature": 0,
            "chat_template_kwargs": {"thinking": False},
        }
        assert reasoning["chat_template_kwargs"] == {"thinking": True}
        assert tool["tools"][0]["function"]["name"] == "get_weather"
        assert tool["tool_choice"] == "auto"
        assert "tools" not in speculation
        assert speed["stream"] is True
        assert speed["stream_options"] == {"include_usage": True}

    def test_what_is_null_is_not_asked(self, server):
        server.start(no_speculation=True)
        off = dict.fromkeys(["reasoning", "tool_call", "speculation", "speed"])
        ctx = server.context(**off, finish=False)
        STEP.apply(ctx)
        assert len(server.requests()) == 1
        assert STEP.check(ctx).outputs == {
            "model": "rehearsal",
            "checks": ["models", "echo"],
            **dict.fromkeys(
                [
                    "decode_tokens_per_second",
                    "ttft_seconds",
                    "drafted",
                    "accepted",
                    "acceptance",
                    "acceptance_by_position",
                    "tokens_per_step",
                ]
            ),
        }

    def test_reasoning_under_its_older_name(self, server):
        old = {"choices.0.message.reasoning": None}
        old["choices.0.message.reasoning_content"] = (
            "I was asked to answer in a fixed way so I will"
        )
        server.start(change={"reasoning": old})
        STEP.apply(server.context())

    def test_any_answer_will_do_where_none_is_expected(self, server):
        server.start()
        STEP.apply(server.context(echo={"prompt": "ping"}))

    def test_what_such_cards_reached_need_not_be_reached_whole(self, server):
        server.start()
        speed = {"prompt": "p", "reference": REACHED, "least_share": 1e-6}
        STEP.apply(server.context(speed=speed))

    def test_speed_counts_tokens_not_events(self, server):
        """The recorded stream has 31 tokens in fewer events, as two come at once when a draft is
        accepted."""
        server.start(token_delay=0.005)
        with Client(f"http://127.0.0.1:{server.port}/v1", "rehearsal", 10) as client:
            case = {"prompt": "p", "max_tokens": 99, "chat_template_kwargs": {}}
            answer, timing = client.stream(case)
        assert answer.content.endswith("nine ten.")
        events = (ANSWERS / "stream.txt").read_text().count('"delta":{"')
        assert events < timing.completion_tokens == 31
        assert timing.last - timing.first >= 0.005 * (events - 3)
        assert timing.decode_tokens_per_second == 30 / (timing.last - timing.first)
        assert timing.ttft == timing.first > 0

    def test_a_rate_takes_two_moments(self):
        assert Timing(0.1, 0.1, 5).decode_tokens_per_second is None
        assert Timing(0.1, 0.2, 1).decode_tokens_per_second is None
        assert Timing(1.0, 3.0, 31).decode_tokens_per_second == 15

    def test_counters_are_differences(self, server):
        server.start(drafted_before=1000, accepted_before=1)
        STEP.apply(server.context())

    def test_prompts_add_up(self, server):
        server.start()
        speculation = {
            "prompts": ["a", "b", "c"],
            "expect": {"drafted": 30, "accepted": 21},
            "min_acceptance": 0.7,
        }
        STEP.apply(server.context(speculation=speculation))


class TestBad:
    @pytest.mark.parametrize(
        ("plan", "changes", "expected"),
        [
            ({"lists": "other"}, {}, ["model_not_listed"]),
            (
                {"change": {"echo": {"choices.0.message.content": "ponk"}}},
                {},
                ["echo_differs"],
            ),
            ({"change": {"echo": {"choices.0.message.content": None}}}, {}, ["echo_void"]),
            (
                {"change": {"reasoning": {"choices.0.message.reasoning": None}}},
                {},
                ["reasoning_empty"],
            ),
            (
                {"change": {"reasoning": {"choices.0.message.content": "no"}}},
                {},
                ["reasoning_answer_differs"],
            ),
            (
                {"change": {"tool": {"choices.0.message.tool_calls": []}}},
                {},
                ["tool_call_missing"],
            ),
            (
                {"change": {"tool": {"choices.0.message.tool_calls.0.function.name": "rm"}}},
                {},
                ["tool_name_differs"],
            ),
            (
                {"change": {"tool": {"choices.0.message.tool_calls.0.function.arguments": "{}"}}},
                {},
                ["tool_arguments_differ"],
            ),
            (
                {"change": {"tool": {"choices.0.message.tool_calls.0.function.arguments": "{"}}},
                {},
                ["tool_arguments_differ"],
            ),
            ({"accepts": {"echo": 0}}, {}, ["draft_counts_differ"]),
            ({"drafts": {"echo": 11}}, {}, ["draft_counts_differ"]),
            (
                {"accepts": {"echo": 5}},
                {"speculation": {"prompts": ["ping"], "min_acceptance": 0.55}},
                ["acceptance_low"],
            ),
            ({"drafts": {"echo": 0}, "accepts": {"echo": 0}}, {}, ["nothing_drafted"]),
            ({"no_speculation": True}, {}, ["speculation_off"]),
            (
                {},
                {"speed": {"prompt": "p", "min_decode_tokens_per_second": 10**6}},
                ["decode_slow"],
            ),
            ({}, {"speed": {"prompt": "p", "max_ttft_seconds": 1e-6}}, ["first_token_slow"]),
            ({}, {"speed": {"prompt": "p", "reference": REACHED}}, ["decode_slow"]),
            (
                {},
                {
                    "speed": {
                        "prompt": "p",
                        "reference": {**REACHED, "tokens_per_second": None, "ttft_seconds": 1e-7},
                    }
                },
                ["first_token_slow"],
            ),
            (
                {"stream_without_usage": True},
                {},
                ["tool_stream_unanswered", "speed_unanswered"],
            ),
            (
                {"request_status": 500, "request_body": "out of cheese"},
                {},
                [
                    "echo_unanswered",
                    "finish_unanswered",
                    "reasoning_unanswered",
                    "tool_call_unanswered",
                    "tool_stream_unanswered",
                    "speculation_unanswered",
                    "speed_unanswered",
                ],
            ),
            (
                {"change": {"echo": {"choices": []}}},
                {},
                ["echo_unanswered", "finish_unanswered", "speculation_unanswered"],
            ),
        ],
    )
    def test_each_is_named(self, server, plan, changes, expected):
        server.start(**plan)
        assert failures(server, **changes) == expected

    def test_tokens_used_up_by_reasoning(self, server):
        cut = json.loads((ANSWERS / "cut.json").read_text())["choices"][0]
        change = {"choices.0": cut}
        server.start(change={"reasoning": change})
        ctx = server.context(reasoning={"prompt": "p", "chat_template_kwargs": {"thinking": True}})
        with pytest.raises(StepFailure) as caught:
            STEP.apply(ctx)
        assert [r.code for r in caught.value.reasons] == ["reasoning_answer_empty"]
        assert "max_tokens" in str(caught.value.remedy)

    def test_markup_in_the_answer_names_the_parser(self, server):
        change = {
            "choices.0.message.tool_calls": None,
            "choices.0.message.content": "<｜DSML｜invoke name=get_weather>",
        }
        server.start(change={"tool": change})
        with pytest.raises(StepFailure) as caught:
            STEP.apply(server.context())
        assert "tool_call_parser" in str(caught.value.remedy)

    def test_a_server_that_is_gone(self, server):
        server.start()
        ctx = server.context()
        server.stop()
        with pytest.raises(StepFailure) as caught:
            STEP.apply(ctx)
        assert [reason.code for reason in caught.value.reasons] == ["server_died"]

    def test_a_request_that_takes_too_long(self, server):
        server.start(request_delay=5)
        off = dict.fromkeys(["reasoning", "tool_call", "speculation", "speed"])
        assert failures(server, request_timeout=0.3, finish=False, **off) == ["echo_unanswered"]


class TestCheck:
    def test_a_result_is_of_one_process(self, server):
        server.start()
        STEP.apply(server.context())
        before = server.context()
        server.start()
        assert codes(STEP.check(before)) == ["server_dead"]
        assert codes(STEP.check(server.context())) == ["asked_otherwise"]

    def test_a_result_is_of_these_questions(self, server):
        server.start()
        STEP.apply(server.context())
        assert codes(STEP.check(server.context(speed=None))) == ["asked_otherwise"]

    def test_a_damaged_result_is_none(self, server):
        server.start()
        STEP.apply(server.context())
        (server.workspace / "smoke" / "result.json").write_text("[")
        assert codes(STEP.check(server.context())) == ["not_asked"]

    def test_the_thorough_form_asks_again(self, server):
        server.start()
        STEP.apply(server.context())
        asked = len(server.requests())
        assert STEP.check(server.context(deep=True)).ok
        assert len(server.requests()) == asked + 1

    def test_undo_leaves_nothing(self, server):
        server.start()
        STEP.apply(server.context())
        STEP.undo(server.context())
        STEP.undo(server.context())
        assert list(server.workspace.iterdir()) == []

    def test_a_quick_check_connects_once_and_starts_nothing(self, server, audit):
        server.start()
        ctx = server.context()
        STEP.apply(ctx)
        before = server.requests()
        with audit() as seen:
            assert STEP.check(ctx).ok
        assert len(seen.connected) == 1
        assert not seen.started
        assert server.requests() == before
