"""The JSON schema for editors: current, valid, and of one mind with the models."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from runbook.document import registry
from runbook.document.compile import BOOKS
from runbook.document.schema import document_schema

HERE = Path(__file__).parent
COMMITTED = files("runbook") / "schemas" / "runbook.schema.json"
# Found in the document's text or by what its parts say of each other: not a matter of shape.
SHAPELESS = {
    "approve_check", "capital_true", "duplicate_key", "duplicate_key_in_with",
    "duration_zero", "input_default_not_in_enum", "input_default_type",
    "input_inside_input", "input_makes_with_wrong", "input_reserved", "input_same_variable",
    "input_without_value", "leading_zero", "list_as_key", "merge_key", "needs_later",
    "needs_twice", "needs_unknown", "not_finite", "off_in_with", "own_step_nested",
    "own_step_validator", "secret_is_input", "secret_twice", "step_id_twice", "tag",
    "template_fails", "template_filter", "template_in_block", "template_later_step",
    "template_not_needed", "template_own_output", "template_syntax", "template_unknown_fact",
    "template_unknown_input", "template_unknown_output", "template_unknown_root",
    "template_unknown_step", "template_workspace_part", "uses_broken_file",
    "uses_class_missing", "uses_file_missing", "uses_not_a_step", "when_braces", "yes",
}  # fmt: skip


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(COMMITTED.read_text()))


def test_the_committed_schema_is_current() -> None:
    committed = json.loads(COMMITTED.read_text())
    assert committed == document_schema(), "make schema"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(document_schema())


def test_each_kind_of_step_and_each_field_is_described() -> None:
    schema = document_schema()
    kinds = {
        branch["if"]["properties"]["uses"]["const"] for branch in schema["$defs"]["Step"]["allOf"]
    }
    assert kinds == set(registry.known_steps())
    for name, definition in schema["$defs"].items():
        for field, inner in definition.get("properties", {}).items():
            assert inner.get("description") or "/$defs/" in json.dumps(inner), (name, field)


@pytest.mark.parametrize(
    "path", sorted([*BOOKS.glob("*.yaml"), *HERE.glob("wellformed/*.yaml")]), ids=lambda p: p.stem
)
def test_good_documents_pass(validator: Draft202012Validator, path: Path) -> None:
    assert [e.message for e in validator.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize("path", sorted(HERE.glob("malformed/*.yaml")), ids=lambda path: path.stem)
def test_documents_of_a_wrong_shape_do_not(validator: Draft202012Validator, path: Path) -> None:
    try:
        data: Any = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    assert validator.is_valid(data) == (path.stem in SHAPELESS)
