"""Remedies are data: no text of the code names a command that only one book would understand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = re.compile(r"runbook (run|logs|destroy|check|plan|status|wait|cancel)\b|--force [a-z]")

# Modules whose texts are still to be converted: this list may only become shorter.
TO_CONVERT = {
    "steps/checkpoint/rules.py",
    "steps/smoke/assertions.py",
    "steps/vllm/packages.py",
}
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
    assert module in TO_CONVERT or not found, "make it a runbook.remedy.Remedy"
