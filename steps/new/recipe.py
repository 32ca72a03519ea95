"""A recipe of the project vllm-project/recipes, as the flags and variables that it means here.

Recipes are YAML of two forms: a model's (`meta`, `model`, `features`, `variants`, overrides by
hardware and strategy; its `CLAUDE.md` has the schema), and the older one that `vllm serve --config`
reads, flags alone. Arguments are laid over each other in the order of the project's own builder,
the last of a name wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runbook.errors import PRECONDITION, USAGE, RunbookError
from runbook.steps.new import arguments
from runbook.steps.new.machine import Machine

Node = Mapping[str, Any]

KEYS: dict[str, tuple[str, str]] = {
    # What is read, and what is about the model or for other ways of serving: guide, pictures,
    # containers, several hosts.
    "": (
        """model features opt_in_features hardware_opt_in_features variants compatible_strategies
        default_strategy strategy_min_gpus hardware_overrides strategy_overrides omni meta
        dependencies""",
        """guide hardware_notes kv_offload_support kv_cache_strategy_hardware strategy_hardware""",
    ),
    "meta": (
        "hardware",
        """title slug provider description date_added date_updated difficulty tasks platforms
        performance_headline related_recipes default_hardware""",
    ),
    "model": (
        "model_id min_vllm_version base_args base_env install nightly_required",
        """architecture parameter_count active_parameters context_length docker_image
        docker_source supports_dcp flashinfer_autotune""",
    ),
    "feature": (
        "args modes default_mode strategies hardware hardware_overrides companion",
        "description label",
    ),
    "mode": ("args variants hardware hardware_overrides", "description label"),
    "variant": (
        """model_id extra_args extra_env hardware_overrides min_vllm_version nightly_required tp
        default_modes supported_hardware""",
        "precision vram_minimum_gb description label docker_image precision_hardware",
    ),
    "override": (
        "extra_args extra_env vllm_args env args tp hardware_overrides",
        "docker_image install_note pool_modes prefill decode router",
    ),
}
HARDWARE = (
    # The project's ids, by the name that the driver gives.
    ("RTX PRO 6000", "rtx_pro_6000"),
    ("RTX PRO 5000", "rtx_pro_5000"),
    ("RTX 5090", "rtx_5090"),
    ("GB10", "dgx_spark_gb10"),
    ("GB300", "gb300"),
    ("GB200", "gb200"),
    ("B300", "b300"),
    ("B200", "b200"),
    ("H200", "h200"),
    ("H100", "h100"),
)
GENERATIONS = {"9": "hopper", "10": "blackwell", "12": "blackwell"}
SINGLE = ("single_node_tp", "single_node_tep")
"""Strategies of one host that a book can say."""


@dataclass
class Recipe:
    """`flags` by their name in vLLM's settings, `extra` arguments as they are. `left_out` are what
    was not taken, each with its reason; `unknown` the keys that nothing here knows."""

    file: str
    repo: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    extra: arguments.Units = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    minimum: str = ""
    ranks: int | None = None
    left_out: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def take(self, words: Iterable[Any], where: str) -> None:
        """Lay arguments over those that are there."""
        try:
            found = arguments.units([str(word) for word in words])
        except ValueError as problem:
            raise malformed(self.file, where, str(problem)) from problem
        for flag, text in found.items():
            self.extra.pop(flag, None)
            self.extra[flag] = text

    def keys(self, node: Node, kind: str, path: str) -> None:
        """Note the keys of a node that nothing here knows."""
        read, about = KEYS[kind]
        names = {*read.split(), *about.split()}
        self.unknown += [f"{path}{key}" for key in node if key not in names]


def malformed(file: str, where: str, what: str) -> RunbookError:
    return RunbookError(
        f"{file} is not of a recipe's form: {where}: {what}",
        code="recipe_malformed",
        exit_code=USAGE,
        remedy="give a file of the project vllm-project/recipes, or correct it",
        where=f"{file}: {where}",
    )


def read(path: Path) -> Node:
    """The mapping in a recipe's file. Raises `RunbookError`."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as problem:
        told = " ".join(str(problem).split())
        raise RunbookError(
            f"{path} cannot be read as a recipe",
            code="recipe_unreadable",
            exit_code=USAGE,
            cause=told,
            remedy="give a YAML file of the project vllm-project/recipes",
        ) from problem
    if not isinstance(found, dict) or not found:
        raise malformed(str(path), "top", "it is no mapping")
    return found


def ids(machine: Machine) -> list[str]:
    """The keys under which recipes speak of this machine, the most exact first."""
    if not machine.gpus:
        return ["cpu"]
    names = [key for mark, key in HARDWARE if mark in machine.gpu_name.upper()][:1]
    exact = [f"{name}_{machine.gpus}x" for name in names]
    generation = GENERATIONS.get(machine.architecture.partition(".")[0], "")
    return [*exact, *names, *([generation] if generation else []), "nvidia"]


def hosts(recipe: Recipe, offered: list[str]) -> RunbookError:
    return RunbookError(
        f"{recipe.file} is for {', '.join(offered) or 'no strategy'}: a book serves on one host "
        f"({', '.join(SINGLE)})",
        code="recipe_strategy",
        exit_code=PRECONDITION,
        remedy="take a recipe of one host, or write the book by hand",
    )
