"""From inputs to the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from runbook.steps.common.flags.command import FLAGS, effective, flag, overlay
from runbook.steps.common.flags.models import Flags
from runbook.steps.serve.command import differences, spec
from runbook.steps.serve.models import Inputs

LEAST = {"vllm": "/v/bin/vllm", "model": "/m", "served_model_name": "n"}


def inputs(**changes):
    return SimpleNamespace(**Inputs(**LEAST | changes).model_dump(mode="json"))


def test_least():
    assert spec(inputs())["argv"] == [
        "/v/bin/vllm", "serve", "/m", "--served-model-name", "n",
        "--host", "127.0.0.1", "--port", "8000",
    ]  # fmt: skip


def test_the_flagships_flags():
    argv = spec(
        inputs(
            tensor_parallel_size=2,
            max_model_len=524288,
            max_num_seqs=2,
            max_num_batched_tokens=8192,
            gpu_memory_utilization=0.93,
            kv_cache_dtype="fp8",
            block_size=256,
            tokenizer_mode="deepseek_v4",
            reasoning_parser="deepseek_v4",
            tool_call_parser="deepseek_v4",
            enable_auto_tool_choice=True,
            trust_remote_code=True,
            disable_custom_all_reduce=True,
            speculative_config={"method": "mtp", "num_speculative_tokens": 1},
            extra_args=["--moe-backend", "marlin"],
        )
    )["argv"]
    assert " ".join(argv[9:]) == (
        "--tensor-parallel-size 2 --max-model-len 524288 --max-num-seqs 2 "
        "--max-num-batched-tokens 8192 --gpu-memory-utilization 0.93 --kv-cache-dtype fp8 "
        "--block-size 256 --tokenizer-mode deepseek_v4 --reasoning-parser deepseek_v4 "
        "--tool-call-parser deepseek_v4 --enable-auto-tool-choice --trust-remote-code "
        '--disable-custom-all-reduce --speculative-config {"method":"mtp",'
        '"num_speculative_tokens":1} --moe-backend marlin'
    )


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        (None, []),
        (True, ["--enforce-eager"]),
        (False, ["--no-enforce-eager"]),
        (3, ["--enforce-eager", "3"]),
        ({"b": [1], "a": None}, ["--enforce-eager", '{"a":null,"b":[1]}']),
    ],
)
def test_flag(value, arguments):
    assert flag("enforce_eager", value) == arguments


def test_every_flag_is_an_input_and_every_input_a_flag():
    assert set(FLAGS) == set(Flags.model_fields) - {"env", "extra_args"}


def test_other_keys_of_speculation_are_passed_on():
    config = {"method": "mtp", "num_speculative_tokens": 2, "draft_tensor_parallel_size": 1}
    argv = spec(inputs(speculative_config=config))["argv"]
    assert json.loads(argv[argv.index("--speculative-config") + 1]) == config


def test_overlay():
    assert overlay([{"a": "1", "b": "1"}, {}, {"b": "2"}]) == {"a": "1", "b": "2"}


def test_a_server_of_a_local_folder_asks_no_other_machine():
    assert spec(inputs())["env"] == {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    assert spec(inputs(env=[{"HF_HUB_OFFLINE": "0"}]))["env"]["HF_HUB_OFFLINE"] == "0"


def test_profile():
    given = inputs(
        max_model_len=1,
        enforce_eager=True,
        env=[{"A": "1"}],
        extra_args=["--x"],
        profile="p",
        profiles={"p": {"max_model_len": 2, "env": [{"A": "2"}], "extra_args": ["--y"]}},
    )
    result = effective(given)
    assert (result.max_model_len, result.enforce_eager) == (2, True)
    assert overlay(result.env) == {"A": "2"}
    assert result.extra_args == ["--x", "--y"]
    assert effective(inputs(max_model_len=1)).max_model_len == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, []),
        ({"max_model_len": 9}, ["--max-model-len"]),
        ({"enforce_eager": True, "port": 8001}, ["--enforce-eager", "--port"]),
        ({"model": "/other"}, ["model"]),
        ({"vllm": "/w/bin/vllm"}, ["program"]),
        ({"env": [{"NCCL_PROTO": "LL"}]}, ["NCCL_PROTO"]),
        ({"digests": {"build": "b", "weights": "w"}}, ["build", "weights"]),
        ({"path": ["/bin"], "supervisor": "session"}, ["path", "supervisor"]),
        ({"extra_args": ["--z", "1", "2"]}, ["--z", "2"]),
    ],
)
def test_differences(change, named):
    assert differences(spec(inputs()), spec(inputs(**change))) == named


def test_order_alone_is_a_difference():
    one, other = inputs(extra_args=["--a", "--b"]), inputs(extra_args=["--b", "--a"])
    assert differences(spec(one), spec(other)) == ["the order of its arguments"]
