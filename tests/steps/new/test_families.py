"""The names that books are written with are names that the locked releases know."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from runbook.steps.checkpoint.targets import RELEASES
from runbook.steps.new import families
from runbook.steps.new.registry import Build, build, targets

REGISTRIES = {
    "tool_call_parser": "tool_call_parsers",
    "reasoning_parser": "reasoning_parsers",
    "tokenizer_mode": "tokenizer_modes",
}
NEWEST = [build(None, gpus)[0] for gpus in (0, 1)]


@pytest.mark.parametrize("target", targets())
def test_registries_are_those_of_the_locked_wheel(target):
    """`make lock` writes both; a lock that was moved alone is seen here."""
    one = Build(target)
    wheels = {wheel.sha256 for wheel in one.release.wheels.values()}
    assert one.known["wheel_sha256"] in wheels
    assert target in RELEASES


def test_every_lock_has_its_registries():
    from runbook.steps.common.vllm_release import ENV

    locks = {
        p.name.removeprefix("vllm-").removesuffix(".lock.json") for p in ENV.glob("*.lock.json")
    }
    assert locks == set(targets())


@pytest.mark.parametrize("one", NEWEST, ids=lambda one: one.target)
@pytest.mark.parametrize("family", families.families(), ids=lambda f: f.source[:40])
def test_what_a_family_gives_is_in_the_registries_of_the_newest(one, family):
    for name, value in family.gives.items():
        assert value in one.known[REGISTRIES[name]]
    known = one.known["architectures"]
    for pattern in family.architectures:
        assert any(re.fullmatch(pattern, name) for name in known), pattern
    assert {flag.replace("_", "-") for flag in family.flags} <= set(one.known["flags"])


@pytest.mark.parametrize("one", NEWEST, ids=lambda one: one.target)
def test_tokenizer_modes_that_vllm_takes_by_itself_agree(one):
    """Those that a family names are of its own architecture."""
    for family in families.families():
        mode = family.gives.get("tokenizer_mode")
        if mode is not None:
            assert family.encodes, mode


def test_the_newest_release_is_taken_and_that_for_cpus_without_a_gpu():
    assert [one.cpu for one in NEWEST] == [True, False]
    assert build("0.22.1", 2)[0].target == "0.22.1"


def test_registries_are_read_in_the_sources_of_a_wheel(tmp_path):
    import zipfile

    from runbook.env.registries import registries

    path = tmp_path / "vllm-9.0-cp38-abi3-manylinux_2_28_x86_64.whl"
    members = {
        "vllm/model_executor/models/registry.py": "_TEXT_GENERATION_MODELS = {'AForCausalLM': ()}\n"
        "_EMBEDDING_MODELS = {'B': ('b', 'B')}\n_MULTIMODAL_MODELS: dict = {'C': ('c', 'C')}\n"
        "_TRANSFORMERS_SUPPORTED_MODELS = {}\n",
        "vllm/tool_parsers/__init__.py": "_TOOL_PARSERS_TO_REGISTER = {'hermes': ('h', 'H')}\n",
        "vllm/reasoning/__init__.py": "_REASONING_PARSERS_TO_REGISTER = {'qwen3': ('q', 'Q')}\n",
        "vllm/tokenizers/registry.py": "_VLLM_TOKENIZERS = {'hf': ('hf', 'T')}\n",
        "vllm/engine/arg_utils.py": "def add(g):\n    g.add_argument('--block-size', type=int)\n",
        "vllm/entrypoints/common/cli_args.py": "class FrontendArgs:\n    chat_template: str\n",
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in members.items():
            wheel.writestr(name, text)
        wheel.writestr("vllm-9.0.dist-info/METADATA", "Name: vllm\n")
    found = registries(path)
    assert found["architectures"] == ["AForCausalLM", "C"]
    assert found["flags"] == ["block-size", "chat-template"]
    assert json.dumps(found)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("vllm-9.0.dist-info/METADATA", "Name: vllm\n")
    with pytest.raises(SystemExit, match="sources have changed"):
        registries(path)


CALLS = "<｜tool▁calls▁begin｜>"
MARKS = [
    # (architecture, chat template, flag, parser): forms of published templates.
    ("MistralForCausalLM", "{{ tools }} [TOOL_CALLS] ", "tool_call_parser", "mistral"),
    ("Glm4MoeForCausalLM", "{function-name}\n<arg_key>", "tool_call_parser", "glm45"),
    ("Glm4MoeForCausalLM", "{function-name}<arg_key>", "tool_call_parser", "glm47"),
    ("DeepseekV3ForCausalLM", f"{CALLS} ```json", "tool_call_parser", "deepseek_v3"),
    ("DeepseekV3ForCausalLM", f"{CALLS}<｜tool▁sep｜>", "tool_call_parser", "deepseek_v31"),
    ("DeepseekV3ForCausalLM", "<｜Assistant｜><think>\n", "reasoning_parser", "deepseek_r1"),
    ("DeepseekV3ForCausalLM", "<|tool_calls_section_begin|>", "tool_call_parser", "kimi_k2"),
    ("NemotronHForCausalLM", "<function= <parameter= <think>", "reasoning_parser", "nemotron_v3"),
    ("Gemma3ForCausalLM", "{{ tools }}", "tool_call_parser", None),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "template", "flag", "parser"), MARKS)
def test_a_template_tells_the_parser(architecture, template, flag, parser):
    model = SimpleNamespace(architectures=(architecture,), template=template)
    found = families.given(families.of(model), flag)
    assert (found and found[0]) == parser
