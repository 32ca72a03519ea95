"""Compiled templates: their forms, their values, and that these are what jinja2 gives."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook import units
from runbook.document import jinja, template
from runbook.document.template import (
    compile_condition,
    compile_value,
    evaluate,
    is_static,
    quote,
    render,
)
from runbook.protocol import StepFailure

SCOPE: dict[str, Any] = {
    "inputs": {
        "jobs": 12,
        "fast": True,
        "name": "deep seek",
        "none": None,
        "items": ["a", "b"],
        "build": {"dir": "out"},
    },
    "facts": {"gpus": [], "cpu": {"cores": 2}},
    "workspace": "/w",
    "steps": {"build": {"outputs": {"python": "/w/bin/python", "env": {"A": "1"}, "size": 1.5e9}}},
}

FORMS = [
    ("plain", "plain"),
    (3, 3),
    (None, None),
    ("{ not a template }", "{ not a template }"),
    ("{{ inputs.jobs }}", {"$ref": ["inputs", "jobs"]}),
    ("{{inputs.jobs}}", {"$ref": ["inputs", "jobs"]}),
    ("{{ workspace }}/x", {"$join": [["workspace"], "/x"]}),
    ("-j{{ inputs.jobs }}", {"$join": ["-j", ["inputs", "jobs"]]}),
    ("{{ inputs.jobs }}{{ inputs.name }}", {"$join": [["inputs", "jobs"], ["inputs", "name"]]}),
    ("{{ inputs.jobs }}}}", {"$join": [["inputs", "jobs"], "}}"]}),
    ("{{{ inputs.jobs }}", {"$jinja": "{{{ inputs.jobs }}"}),
    ("{{ inputs.jobs * 2 }}", {"$jinja": "{{ inputs.jobs * 2 }}"}),
    ("{{- inputs.jobs }}", {"$jinja": "{{- inputs.jobs }}"}),
    ("{# note #}x", {"$jinja": "{# note #}x"}),
    ("{{ true }}", {"$jinja": "{{ true }}"}),
    ("{{ workspace }}\r\n", {"$jinja": "{{ workspace }}\r\n"}),
    ([{"a": "{{ workspace }}"}], [{"a": {"$ref": ["workspace"]}}]),
    ({"$ref": ["workspace"]}, {"$$ref": ["workspace"]}),
    ({"$$x": {"$": 1}}, {"$$$x": {"$$": 1}}),
]


@pytest.mark.parametrize(("source", "compiled"), FORMS, ids=str)
def test_forms(source: Any, compiled: Any) -> None:
    assert compile_value(source) == compiled


VALUES = [
    ("{{ inputs.jobs }}", 12),
    ("{{ inputs.fast }}", True),
    ("{{ inputs.none }}", None),
    ("{{ inputs.items }}", ["a", "b"]),
    ("{{ steps.build.outputs.env }}", {"A": "1"}),
    ("{{ steps.build.outputs['python'] }}", "/w/bin/python"),
    ("{{ inputs.jobs // 5 }}", 2),
    ("{{ inputs.items | map('upper') }}", ["A", "B"]),
    ("{{ inputs.items | join('+') }}", "a+b"),
    ("{{ (inputs.none, 1) }}", [None, 1]),
    ("{{ {'a': {'b': inputs.jobs}} }}", {"a": {"b": 12}}),
    ("{{- inputs.jobs -}}", 12),
    ("fast={{ inputs.fast }} jobs={{ inputs.jobs }}", "fast=true jobs=12"),
    ("{{ inputs.items }} {{ steps.build.outputs.env }}", '["a", "b"] {"A": "1"}'),
    ("{{ inputs.fast | string }}!", "True!"),
    ("{% for i in inputs.items %}{{ i }};{% endfor %}", "a;b;"),
    ("{{ steps.build.outputs.size | filesize }}", "1.5 GB"),
    ("{{ inputs.none or 'x' }}/", "x/"),
    ("{{ '{{' }} {{ workspace }}\n", "{{ /w\n"),
    ({"$ref": "{{ workspace }}", "x": [{"$join": []}]}, {"$ref": "/w", "x": [{"$join": []}]}),
]


@pytest.mark.parametrize(("source", "value"), VALUES, ids=str)
def test_values(source: Any, value: Any) -> None:
    compiled = compile_value(source)
    assert json.loads(json.dumps(compiled)) == compiled
    assert render(compiled, SCOPE) == value


CONDITIONS = [
    (None, None, True),
    (True, True, True),
    (False, False, False),
    ("facts.gpus", {"$ref": ["facts", "gpus"]}, False),
    (" not facts.gpus ", {"$not": ["facts", "gpus"]}, True),
    ("inputs.jobs == 12", {"$equal": [["inputs", "jobs"], 12]}, True),
    ("inputs.jobs != 12", {"$differ": [["inputs", "jobs"], 12]}, False),
    ("inputs.name == 'deep seek'", {"$equal": [["inputs", "name"], "deep seek"]}, True),
    ('inputs.name=="x"', {"$equal": [["inputs", "name"], "x"]}, False),
    ("inputs.fast == true", {"$equal": [["inputs", "fast"], True]}, True),
    ("inputs.jobs == 012", {"$jinja": "{{ inputs.jobs == 012 }}"}, None),
    ("inputs.jobs > 3 and inputs.fast", {"$jinja": "{{ inputs.jobs > 3 and inputs.fast }}"}, True),
    ("'a' in inputs.items", {"$jinja": "{{ 'a' in inputs.items }}"}, True),
    ("{'a': {'b': 0}}.a.b", {"$jinja": "{{ {'a': {'b': 0}}.a.b }}"}, False),
]  # fmt: skip


@pytest.mark.parametrize(("when", "compiled", "value"), CONDITIONS, ids=str)
def test_conditions(when: Any, compiled: Any, value: bool | None) -> None:
    assert compile_condition(when) == compiled
    if value is not None:
        assert evaluate(compiled, SCOPE) is value


MISSING = [
    ("{{ inputs.nothing }}", "template_undefined", "`inputs` has no `nothing`; it has jobs"),
    ("a {{ steps.weights.outputs.x }}", "template_undefined", "`steps` has no `weights`"),
    ("{{ inputs.jobs.max }}", "template_undefined", "`inputs.jobs` is a number and has no `max`"),
    ("{{ check.work.bytes }}", "template_undefined", "nothing is named `check` here"),
    ("{{ inputs.nothing + 1 }}", "template_undefined", "has no attribute 'nothing'"),
    ("{{ inputs.nothing | upper }}x", "template_undefined", "has no attribute 'nothing'"),
    ("{{ inputs['nothing'] }}", "template_undefined", "has no attribute 'nothing'"),
    ("x{{ inputs.none }}", "template_null", "null has no text"),
    ("x{{ inputs.none | default('y') }}", "template_null", "null has no text"),
    ("{{ 1 // 0 }}", "template_failed", "ZeroDivisionError"),
    ("{{ workspace.upper }}", "template_undefined", "`workspace` is text"),
    ("{{ workspace.upper if 1 }}", "template_failed", "not plain data"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "template_failed", "SecurityError"),
    ("{{ inputs.items.append('c') }}", "template_failed", "SecurityError"),
]


@pytest.mark.parametrize(("source", "code", "cause"), MISSING, ids=lambda x: x)
def test_failures(source: str, code: str, cause: str) -> None:
    with pytest.raises(StepFailure) as caught:
        render(compile_value(source), SCOPE)
    assert (caught.value.code, caught.value.retryable) == (code, False)
    assert cause in caught.value.cause
    assert caught.value.remedy


def test_a_condition_on_a_missing_name_fails() -> None:
    for when in ("facts.disk", "not facts.disk", "facts.disk == 1", "facts.disk and 1"):
        with pytest.raises(StepFailure, match="not known"):
            evaluate(compile_condition(when), SCOPE)


SIZES = [
    (0, "0 B"),
    (999, "999 B"),
    (1000, "1 kB"),
    (1049, "1 kB"),
    (1050, "1.1 kB"),
    (99_949, "99.9 kB"),
    (99_950, "100 kB"),
    (999_499, "999 kB"),
    (999_500, "1 MB"),
    (157_015_000_000, "157 GB"),
    (3.2e15, "3200 TB"),
]


@pytest.mark.parametrize(("count", "text"), SIZES)
def test_filesize(count: float, text: str) -> None:
    assert units.size(count) == text


# -- both ways give the same

PATHS = st.sampled_from(
    [
        "inputs.jobs",
        "inputs.fast",
        "inputs.name",
        "inputs.none",
        "inputs.items",
        "inputs.build.dir",
        "inputs.nothing",
        "inputs.jobs.x",
        "facts.gpus",
        "facts.cpu.cores",
        "workspace",
        "steps.build.outputs.env",
        "steps.build.outputs.size",
        "steps.weights.outputs.path",
        "check.work.bytes",
    ]
)
SPACE = st.sampled_from(["", " ", "  ", "\n", "\t"])
REFERENCES = st.builds(lambda a, p, b: "{{" + a + p + b + "}}", SPACE, PATHS, SPACE)
TEXT = st.text(alphabet="ab {}%#$\n\r-+'\"\\é", max_size=6)
TEMPLATES = st.lists(st.one_of(REFERENCES, TEXT), max_size=5).map("".join)
UNDEFINED = "undefined"


def outcome(compiled: Any) -> Any:
    """A value, or the kind of failure."""
    try:
        return "value", render(compiled, SCOPE)
    except StepFailure as failure:
        return "failure", failure.code


@given(TEMPLATES)
def test_both_ways_give_the_same(source: str) -> None:
    compiled = compile_value(source)
    if template.operator(compiled) in ("$ref", "$join"):
        assert outcome(compiled) == outcome({"$jinja": source})
    elif not template.operator(compiled):
        assert compiled == source
        # jinja2 rewrites line ends, and would only be asked if there were a template.
        assert jinja.render(source, {}) == source.replace("\r\n", "\n").replace("\r", "\n")


@given(PATHS, st.sampled_from(["", "not "]), SPACE, SPACE)
def test_both_ways_give_the_same_condition(path: str, negation: str, a: str, b: str) -> None:
    when = f"{a}{negation}{path}{b}"
    compiled = compile_condition(when)
    assert template.operator(compiled) in ("$ref", "$not")
    assert outcome(compiled) == outcome({"$jinja": "{{ " + when + " }}"})


LITERALS = st.one_of(
    st.integers(0, 20).map(str),
    st.sampled_from(["true", "false", "'deep seek'", '"out"', "'é'", "''", "1.5", "-1", "none"]),
)


@given(PATHS, st.sampled_from(["==", "!=", " == "]), LITERALS)
def test_both_ways_give_the_same_comparison(path: str, sign: str, literal: str) -> None:
    when = f"{path}{sign}{literal}"
    assert outcome(compile_condition(when)) == outcome({"$jinja": "{{ " + when + " }}"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet="$refjoin{}%a", max_size=6), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON)
def test_quoted_values_come_back(value: Any) -> None:
    assert render(quote(value), {}) == value


@given(JSON)
def test_values_without_templates_come_back(value: Any) -> None:
    if not any(mark in json.dumps(value) for mark in ("{{", "{%", "{#")):
        assert render(compile_value(value), {}) == value


@given(JSON | TEMPLATES)
def test_what_is_static_is_its_own_rendering(value: Any) -> None:
    compiled = compile_value(value)
    if is_static(compiled):
        assert render(compiled, {}) == compiled == value


def test_what_is_not_static() -> None:
    for value in ("{{ workspace }}", ["x", {"a": "{{ workspace }}"}], {"$x": 1}):
        assert not is_static(compile_value(value))


def test_plain_forms_import_no_jinja2() -> None:
    code = """
import sys
from runbook.document.template import compile_condition, compile_value, evaluate, render
scope = {"inputs": {"a": 1}, "facts": {"gpus": []}}
assert render(compile_value(["{{ inputs.a }}", "x{{ inputs.a }}"]), scope) == [1, "x1"]
for when in ("facts.gpus", "not inputs.a", "inputs.a == 2"):
    assert not evaluate(compile_condition(when), scope)
loaded = {"jinja2", "pydantic", "yaml"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)
