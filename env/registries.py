"""What a vLLM release knows by name, read in its wheel: architectures, parsers, tokenizer modes,
flags of `vllm serve`.

Nothing is imported: the registries are dictionaries in the sources. `lock_vllm` writes them beside
the lock, as `vllm-<target>.registries.json`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runbook.steps.common.packages.wheel import Wheel
from runbook.steps.common.store import sha256_file

ARCHITECTURES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
"""The dictionaries of `models/registry.py` whose models answer in text."""
FLAGS = ("vllm/engine/arg_utils.py",)
SERVING = (  # where releases keep the flags of the API server, the present one first
    "vllm/entrypoints/common/cli_args.py",
    "vllm/entrypoints/launchers/cli_args.py",
    "vllm/entrypoints/openai/cli_args.py",
)


def registries(path: Path) -> dict[str, Any]:
    """{wheel_sha256, architectures, tool_call_parsers, reasoning_parsers, tokenizer_modes, flags},
    each list sorted. Raises SystemExit for a wheel without one of the registries."""
    with Wheel(path) as wheel:
        found = {
            "architectures": {
                name
                for table in ARCHITECTURES
                for name in _keys(_tree(wheel, "vllm/model_executor/models/registry.py"), table)
            },
            "tool_call_parsers": _keys(
                _tree(wheel, "vllm/tool_parsers/__init__.py"), "_TOOL_PARSERS_TO_REGISTER"
            ),
            "reasoning_parsers": _keys(
                _tree(wheel, "vllm/reasoning/__init__.py"), "_REASONING_PARSERS_TO_REGISTER"
            ),
            "tokenizer_modes": _keys(
                _tree(wheel, "vllm/tokenizers/registry.py"), "_VLLM_TOKENIZERS"
            ),
            "flags": {
                flag
                for name in (*FLAGS, *SERVING)
                if name in wheel.members
                for flag in _flags(_tree(wheel, name))
            },
        }
    if lacking := sorted(name for name, names in found.items() if not names):
        raise SystemExit(f"{path.name}: no {', '.join(lacking)} found: its sources have changed")
    return {
        "wheel_sha256": sha256_file(path),
        **{name: sorted(names) for name, names in found.items()},
    }


def _tree(wheel: Wheel, member: str) -> ast.Module:
    return ast.parse((wheel.read(member) or b"").decode())


def _keys(tree: ast.Module, table: str) -> set[str]:
    """The texts that a dictionary of this name has as keys."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == table for target in targets)
        value = getattr(node, "value", None)
        if named and isinstance(value, ast.Dict):
            return {str(k.value) for k in value.keys if isinstance(k, ast.Constant)}
    return set()


def _flags(tree: ast.Module) -> Iterator[str]:
    """The options that a module declares, without their dashes: by `add_argument`, and as fields
    of its classes of arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            for argument in node.args:
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("--"):
                    yield str(argument.value).removeprefix("--")
        if isinstance(node, ast.ClassDef) and node.name.endswith("Args"):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id.replace("_", "-")
