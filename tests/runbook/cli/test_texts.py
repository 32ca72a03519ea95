"""Remedies are data: no text of the code names a command that only one book would understand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
COMMAND = re.compile(r"runbook (run|logs|destroy|check|plan|status|wait|cancel)\b|--force [a-z]")

MODULES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("runbook/cli", "runbook/execution", "runbook/planning", "runbook/state",
                   "runbook/document", "steps")
    for path in (ROOT / folder).rglob("*.py")
)  # fmt: skip


def texts(tree: ast.AST) -> list[tuple[int, str]]:
    """The texts of a module that are not docstrings, each with its line."""
    prose = set()
    for node in ast.walk(tree):
        for child in (
            getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []
        ):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                prose.add(id(child.value))
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


@pytest.mark.parametrize("module", MODULES)
def test_no_text_holds_a_command(module):
    tree = ast.parse((ROOT / module).read_text())
    found = [(line, text) for line, text in texts(tree) if COMMAND.search(text)]
    assert not found, "make it a runbook.remedy.Remedy"


def test_the_catalogue_of_failures_holds_none():
    files = sorted((ROOT / "steps/common/diagnoses/entries").glob("*.yaml"))
    assert files
    for file in files:
        for entry in yaml.safe_load(file.read_text()):
            remedy = entry["remedy"]
            text = remedy if isinstance(remedy, str) else remedy.get("text", "")
            assert not COMMAND.search(text), entry["id"]
