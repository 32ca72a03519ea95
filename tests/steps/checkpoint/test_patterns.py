"""Targets by name and by expression, in linear time."""

from __future__ import annotations

import pytest

from runbook.steps.checkpoint.patterns import MOST, Patterns
from runbook.steps.checkpoint.quantization import Quantization

NAME = "model.layers.3.mlp.experts"


@pytest.mark.parametrize(
    ("target", "matches"),
    [
        (NAME, True),
        ("model.layers.3.mlp", False),
        ("experts", False),
        ("re:model", True),  # from the start, not to the end
        ("re:experts", False),
        (r"re:.*\.experts$", True),
        (r"re:.*\.layers\.\d+\.mlp\.expert$", False),
        ("re:", True),
        ("re:.*(shared|mlp)\\.", True),
        ("Linear", False),
    ],
)
def test_targets(target, matches):
    for targets in ([target], ["x", target, "re:y"], ["re:y$", "re:z", target]):
        assert Patterns(targets).match(NAME) == matches


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("*experts*", True),
        ("*experts", True),
        ("model.*", True),
        ("model*mlp", False),
        ("*.layers.?.*", False),
        ("model.layers.3.mlp.expert*", True),
        ("modelx*", False),
        ("model+*", False),
    ],
)
def test_globs(glob, matches):
    assert Patterns.of_globs([glob]).match(NAME) == matches


def test_what_cannot_be_matched_is_told_apart():
    texts = ["re:(", r"re:(?<!a)b", r"re:\Z", "re:" + "a" * MOST, "re:.*x"]
    found = Patterns(texts)
    assert found.invalid == ["("]
    assert found.unexamined == [r"(?<!a)b", r"\Z", "a" * MOST, ".*x"]
    assert not found.match("x") and Patterns(["re:.*x"]).match("x")


def test_expressions_too_large_to_be_joined_count_one_by_one():
    texts = [f"re:(.{{0,{900 + i}}}a){{1}}{i}$" for i in range(40)]
    found = Patterns(texts)
    assert not found.unexamined
    assert found.match("xa7") and not found.match("xa99")


@pytest.mark.parametrize(
    ("weights", "stored"),
    [
        ({"num_bits": 4, "type": "int"}, "int4"),
        ({"num_bits": 8, "type": "float"}, "fp8"),
        ({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4"),
        ({"num_bits": 4, "type": "float", "group_size": 32}, "mxfp4"),
        ({"num_bits": 8, "type": "int"}, "int8"),
        ({}, "NoneNone"),
    ],
)
def test_schemes(weights, stored):
    groups = {"g": {"targets": ["Linear"], "weights": weights}}
    found = Quantization({"quant_method": "compressed-tensors", "config_groups": groups})
    scheme = found.linear("anything")
    assert scheme is not None and scheme.stored == stored
    assert found.int4_group is None


def test_the_first_group_that_names_a_module_is_its_own():
    groups = {
        "a": {"targets": [r"re:.*\.up$"], "weights": {"num_bits": 8, "type": "float"}},
        "b": {"targets": ["m.up", "m.gate", "Linear"], "weights": {}},
    }
    found = Quantization({"config_groups": groups, "ignore": ["m.skip", r"re:.*\.experts\.0\."]})
    for name, group in (("m.up", "a"), ("m.gate", "b"), ("other", "b"), ("m.skip", None)):
        scheme = found.linear(name)
        assert (scheme.name if scheme else None) == group
    assert found.linear("m.fused", ["m.skip", "m.skip"]) is None
    joined = found.linear("m.fused", ["m.up", "x.up"])
    assert joined is not None and joined.name == "a"
    assert found.experts("m.experts") is None
    assert found.experts("m.others") is not None
