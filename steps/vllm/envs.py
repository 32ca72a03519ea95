"""The environment variables that a vLLM knows, read from its source: importing it takes long."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from runbook.protocol import StepFailure

_NAME = re.compile(r"VLLM_[A-Z0-9_]+")


def known_variables(source: Path) -> list[str]:
    """The names VLLM_* that `vllm/envs.py` declares or asks for; empty if there is no such file.

    It declares them twice, as annotated names for type checkers and as keys of a dictionary, and
    some only in a call of os.getenv; each is a name or a text of its own in the syntax tree.
    """
    try:
        tree = ast.parse(source.read_bytes())
    except FileNotFoundError:
        return []
    except SyntaxError as error:
        raise StepFailure(
            f"{source} is no Python",
            code="source_malformed",
            cause=str(error),
            remedy="correct the patch series, or name another release",
        ) from error
    found = set()
    for node in ast.walk(tree):
        text = node.id if isinstance(node, ast.Name) else getattr(node, "value", None)
        if isinstance(text, str) and _NAME.fullmatch(text):
            found.add(text)
    return sorted(found)
