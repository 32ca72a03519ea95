"""A recipe's file, read as what it means for a book: flags, environment, repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from runbook.steps.common.flags.models import Flags
from runbook.steps.new import arguments
from runbook.steps.new.layers import Layers
from runbook.steps.new.machine import Machine
from runbook.steps.new.recipe import Node, Recipe, ids, read

PLACEHOLDER = re.compile(r"\$\{?[A-Za-z_]")
"""Of a variable that whoever runs a recipe has to set."""


def interpret(path: Path, machine: Machine, variant: str | None, features: Iterable[str]) -> Recipe:
    """What a recipe says for this machine. Raises `RunbookError`."""
    document = read(path)
    recipe = Recipe(path.name)
    if not {"meta", "model", "variants"} & set(document):
        return _config(recipe, document)
    Layers(recipe, document, ids(machine), machine, variant, tuple(features)).read()
    _name(recipe)
    return recipe


def _config(recipe: Recipe, document: Node) -> Recipe:
    """The older form: flags of `vllm serve` by name, lists and mappings as JSON."""
    for key, value in document.items():
        if isinstance(value, bool):
            text = None if value else "false"
        else:
            text = json.dumps(value) if isinstance(value, (list, dict)) else str(value)
        recipe.extra[f"--{str(key).replace('_', '-')}"] = text
    _name(recipe)
    return recipe


def _name(recipe: Recipe) -> None:
    """Bring arguments under the names of vLLM's settings, where these are of a book's."""
    for flag, text in list(recipe.extra.items()):
        name, off = arguments.field(flag)
        if name in Flags.model_fields and flag.startswith("--") and "." not in flag:
            recipe.flags[name] = arguments.value(text, off)
            del recipe.extra[flag]
    model = recipe.extra.pop("--model", None)
    recipe.repo = recipe.repo or (model or "")
