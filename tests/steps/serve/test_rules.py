"""The rules of combinations: each fires on its case, and stays quiet on what is near to it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from runbook.steps.serve import rules

DATA = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text())
RULES = {rule.id: rule for rule in rules.rules()}


def laid(base: Any, over: Any) -> Any:
    """Dictionaries merged at every depth; a null drops a key."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    merged = {k: laid(base.get(k), v) for k, v in over.items()}
    return {k: v for k, v in (base | merged).items() if v is not None}


def facts(name: str) -> dict[str, Any]:
    told = DATA["gpus"][name]
    gpus = [
        {
            "index": i,
            "uuid": f"GPU-{i}",
            "architecture": told["architecture"],
            "memory": told["mib"] * 2**20,
        }
        for i in range(told["count"])
    ]
    links = [
        {"a": a, "b": b, "kind": told["kind"], "nvlinks": told["nvlinks"]}
        for a in range(len(gpus))
        for b in range(a + 1, len(gpus))
    ]
    return {"gpus": gpus, "gpu_links": links}


def model(folder: Path, told: dict[str, Any]) -> None:
    """A folder with the model's config and index."""
    config = dict(told)
    gigabytes, int4, ignored = (config.pop(k, None) for k in ("weights_gb", "int4", "nvfp4"))
    if int4 is not None:
        weights = {"num_bits": 4, "type": "int", **int4}
        config["quantization_config"] = {"config_groups": {"group_0": {"weights": weights}}}
    if ignored is not None:
        config["quantization_config"] = {"moe_quant_algo": "NVFP4", "ignore": ignored}
    (folder / "config.json").write_text(json.dumps(config))
    metadata = {} if gigabytes is None else {"total_size": gigabytes * 10**9}
    index = {"metadata": metadata, "weight_map": {"embed.weight": "a"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def fired(
    over: dict[str, Any], folder: Path, monkeypatch: Any, override: tuple[str, ...] = ()
) -> dict[str, Any]:
    case = laid(copy.deepcopy(DATA["healthy"]), {k: v for k, v in over.items() if v is not None})
    given = {**case["flags"], "env": [case["env"]]}
    unknown = case.get("unknown", [])
    if over.get("config", ...) is None:
        unknown = [*unknown, "model"]
    else:
        model(folder, case["config"])
        given["model"] = str(folder)
    monkeypatch.setattr(rules, "_memlock", lambda: over.get("memlock"))
    machine = facts(case["gpus"])
    if over.get("cores"):
        machine["cpu"] = {"cores": over["cores"]}
    world = rules.world(given, unknown, machine)
    return {reason.code: reason for reason in rules.findings(world, override)}


def test_a_healthy_flagship_breaks_no_rule(folder: Path, monkeypatch: Any) -> None:
    assert fired({}, folder, monkeypatch) == {}


@pytest.fixture
def folder(tmp_path_factory: Any) -> Path:
    """Without the name of the case: paths with some words in them break a rule."""
    made: Path = tmp_path_factory.mktemp("case")
    return made


def test_each_rule_has_its_cases() -> None:
    assert set(DATA["cases"]) == set(RULES)
    assert len(RULES) == len(rules.rules())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_fires(name: str, folder: Path, monkeypatch: Any) -> None:
    found = fired(DATA["cases"][name]["fires"], folder, monkeypatch)
    assert name in found
    reason = found[name]
    assert reason.severity == {"refuse": "error", "warn": "warning"}[RULES[name].severity]
    assert f"rule {name}" in reason.message
    assert reason.remedy
    assert "None" not in reason.message
    others = {r.code for r in found.values() if r.severity == "error"} - {name}
    assert others == set(), "the case shows another fault as well"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_stays_quiet(name: str, folder: Path, monkeypatch: Any) -> None:
    assert name not in fired(DATA["cases"][name]["quiet"], folder, monkeypatch)


@pytest.mark.parametrize("name", [n for n, rule in RULES.items() if rule.severity == "refuse"])
def test_an_overridden_rule_only_warns(name: str, folder: Path, monkeypatch: Any) -> None:
    case = DATA["cases"][name]["fires"]
    found = fired(case, folder, monkeypatch, (name,))
    assert found[name].severity == "warning"
    assert "override" not in found[name].remedy
    assert f"override: [{name}]" in fired(case, folder, monkeypatch)[name].remedy


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_whole(rule: rules.Rule) -> None:
    assert rule.severity in ("refuse", "warn")
    assert len(rule.remedy) == 1 and set(rule.remedy) <= {"set", "env", "else"}
    assert rule.source and rule.consequence


@pytest.mark.parametrize("machine", DATA["gpus"])
def test_what_is_not_known_breaks_no_rule(machine: str) -> None:
    """Nothing is known but the machine: any flag, variable and checkpoint may come."""
    paths = ["extra_args.0", "env.0", "model", "release.version"]
    assert list(rules.findings(rules.world({}, paths, facts(machine)), ())) == []


def test_no_rule_stumbles_over_an_empty_checkpoint(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    world = rules.world({"model": str(folder)}, (), facts("two-rtx-pro"))
    assert {r.code for r in rules.findings(world, ()) if r.severity == "error"} == set()


def test_the_chosen_profile_and_further_arguments_count() -> None:
    given = {
        "profile": "eager",
        "profiles": {"eager": {"enforce_eager": True, "env": [{"A": "1"}]}, "other": {}},
        "env": [{"A": "0", "B": "0"}],
        "extra_args": ["--nnodes=2", "--no-enable-lora", "--seed", "3", "--x", "text"],
    }
    world = rules.world(given, (), facts("two-rtx-pro"))
    assert world["flags"]["enforce_eager"] is True
    assert world["env"] == {"A": "1", "B": "0"}
    assert world["hosts"] == 2
    assert world["flags"]["enable_lora"] is False
    assert (world["flags"]["seed"], world["flags"]["x"]) == (3, "text")


def test_shared_flags_count_under_those_beside() -> None:
    given = {
        "flags": {
            "seed": 3,
            "block_size": 64,
            "env": [{"A": "0", "B": "0"}],
            "extra_args": ["--x"],
        },
        "seed": 4,
        "block_size": None,
        "env": [{"A": "1"}],
        "extra_args": ["--y"],
    }
    world = rules.world(given, (), facts("two-rtx-pro"))
    assert (world["flags"]["seed"], world["flags"]["block_size"]) == (4, 64)
    assert world["env"] == {"A": "1", "B": "0"}
    assert world["flags"]["y"] is True


@pytest.mark.parametrize(
    "unknown", [["flags"], ["flags.seed"], ["flags.extra_args.0"]], ids=lambda paths: paths[0]
)
def test_what_is_not_known_of_shared_flags_is_not_taken_for_unset(unknown: list[str]) -> None:
    given = {"seed": None, "flags": {} if unknown != ["flags"] else None}
    flags = rules.world(given, unknown, facts("two-rtx-pro"))["flags"]
    with pytest.raises(KeyError):
        flags["seed"]
    assert rules.world({"flags": {"seed": None}}, (), facts("none"))["flags"]["seed"] is None


def test_an_unknown_layer_of_the_shared_environment_may_set_anything() -> None:
    world = rules.world({"flags": {"env": [{"A": "1"}]}}, ["flags.env.1"], facts("none"))
    assert world["env"]["A"] == "1"
    with pytest.raises(KeyError):
        world["env"]["B"]


def test_a_profile_that_is_not_known_may_give_any_of_its_flags() -> None:
    given = {
        "enable_auto_tool_choice": True,
        "profiles": {"a": {"tool_call_parser": "x", "env": [{"A": "1"}]}, "b": {"seed": 1}},
    }
    world = rules.world(given, ("profile",), facts("none"))
    assert list(rules.findings(world, ())) == []
    assert "seed" not in world["flags"] and "*" in world["env"].unknown
    world = rules.world({**given, "profile": "b"}, (), facts("none"))
    assert [r.code for r in rules.findings(world, ())] == ["tool_parser_missing"]


def test_a_display_card_beside_them_is_not_judged() -> None:
    machine = facts("two-rtx-pro")
    display = {"index": 2, "uuid": "GPU-2", "architecture": "12.0", "memory": 16 * 2**30}
    machine["gpus"].append(display)
    world = rules.world({"tensor_parallel_size": 2}, (), machine)
    assert round(world["gpu"]["memory_gib"]) == 96
    seen = {"env": [{"CUDA_VISIBLE_DEVICES": "GPU-2"}]}
    assert rules.world(seen, (), machine)["gpu"]["count"] == 1
