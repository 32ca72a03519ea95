"""The layers of a model's recipe, one over the other, for one variant on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runbook.errors import PRECONDITION, USAGE, RunbookError
from runbook.steps.new.machine import Machine
from runbook.steps.new.recipe import SINGLE, Node, Recipe, hosts, malformed


class Layers:
    """Reads a recipe's document into `recipe`."""

    def __init__(
        self,
        recipe: Recipe,
        document: Node,
        ids: list[str],
        machine: Machine,
        variant: str | None,
        features: tuple[str, ...],
    ) -> None:
        self.recipe, self.document, self.ids = recipe, document, ids
        self.machine, self.wanted = machine, features
        self.model = self._mapping(document, "model", "")
        variants = self._mapping(document, "variants", "")
        self.key = variant or "default"
        if self.key not in variants:
            raise RunbookError(
                f"{recipe.file} has no variant {self.key!r}",
                code="recipe_variant",
                exit_code=USAGE,
                remedy=f"name one of {', '.join(variants) or 'none'} with --variant",
            )
        self.variant = self._mapping(variants, self.key, "variants.")
        others = [name for name in variants if name != self.key]
        if others:
            told = f"other variants ({', '.join(others)}): --variant takes one"
            recipe.left_out.append(told)

    def read(self) -> None:
        recipe, document, variant = self.recipe, self.document, self.variant
        recipe.keys(document, "", "")
        recipe.keys(self.model, "model", "model.")
        recipe.keys(variant, "variant", f"variants.{self.key}.")
        self._machine()
        recipe.repo = str(variant.get("model_id") or self.model.get("model_id") or "")
        recipe.minimum = str(
            variant.get("min_vllm_version") or self.model.get("min_vllm_version") or ""
        )
        strategy = self._strategy()
        overrides = self._mapping(document, "strategy_overrides", "")
        own = self._mapping(overrides, strategy, "strategy_overrides.")
        recipe.keys(own, "override", f"strategy_overrides.{strategy}.")
        self._layer(self.model, "base_args", "base_env", "model.")
        self._layer(variant, "extra_args", "extra_env", f"variants.{self.key}.")
        if strategy == "single_node_tep":
            recipe.take(["--enable-expert-parallel"], strategy)
        self._layer(own, "vllm_args", "env", f"strategy_overrides.{strategy}.")
        self._layer(own, "extra_args", "extra_env", f"strategy_overrides.{strategy}.")
        if "hardware_overrides" in own:  # in place of those of the recipe and the variant
            self._hardware(own, f"strategy_overrides.{strategy}.")
        else:
            self._hardware(document, "")
            self._hardware(variant, f"variants.{self.key}.")
        recipe.ranks = self._ranks(variant.get("tp")) or self._ranks(own.get("tp"))
        self._features(strategy)
        for told in self._elsewhere():
            recipe.left_out.append(told)

    def _machine(self) -> None:
        meta = self._mapping(self.document, "meta", "")
        self.recipe.keys(meta, "meta", "meta.")
        states = self._mapping(meta, "hardware", "meta.")
        named = next((key for key in self.ids if key in states), None)
        if named and states[named] == "unsupported":
            raise RunbookError(
                f"{self.recipe.file} says that the model does not run on {named} yet",
                code="recipe_hardware",
                exit_code=PRECONDITION,
                remedy="take other hardware, or leave the recipe out and try with --from",
            )
        listed = self.variant.get("supported_hardware")
        if isinstance(listed, list) and not set(map(str, listed)) & set(self.ids):
            told = f"variant {self.key} is documented for {', '.join(map(str, listed))} only"
            self.recipe.left_out.append(told)
        if "omni" in self.document:
            raise RunbookError(
                f"{self.recipe.file} is for vllm-omni (pictures, sound or film), which no step "
                "here installs or asks",
                code="recipe_omni",
                exit_code=PRECONDITION,
                remedy="serve it with vllm-omni",
            )

    def _strategy(self) -> str:
        offered = [str(name) for name in self.document.get("compatible_strategies") or []]
        wanted = str(self.document.get("default_strategy") or "")
        if wanted in SINGLE:
            return wanted
        chosen = next((name for name in SINGLE if name in offered), None)
        if chosen is None and offered:
            raise hosts(self.recipe, offered)
        chosen = chosen or SINGLE[0]
        least = self.document.get("strategy_min_gpus")
        keys = (chosen, *self.ids)
        bars = [least.get(key) for key in keys] if isinstance(least, dict) else [least]
        bars = [bar.get(chosen) if isinstance(bar, dict) else bar for bar in bars]
        bar = max((b for b in bars if type(b) is int), default=0)
        if self.machine.gpus and bar > self.machine.gpus:
            raise RunbookError(
                f"{self.recipe.file} wants {bar} GPUs for {chosen}; there are {self.machine.gpus}",
                code="recipe_gpus",
                exit_code=PRECONDITION,
                remedy="take another variant with --variant, or more GPUs",
            )
        return chosen

    def _layer(self, node: Node, words: str, variables: str, path: str) -> None:
        """Lay the arguments and the environment of a node over what is there."""
        given = node.get(words) or []
        if not isinstance(given, list):
            raise malformed(self.recipe.file, path + words, "it is no list")
        self.recipe.take(given, path + words)
        for key, value in self._mapping(node, variables, path).items():
            self.recipe.env[str(key)] = str(value)

    def _hardware(self, node: Node, path: str) -> None:
        """The overrides for this machine: its generation's, else NVIDIA's, and its own besides."""
        overrides = self._mapping(node, "hardware_overrides", path)
        exact = [key for key in self.ids if key in overrides]
        general = [key for key in exact if key in ("hopper", "blackwell", "nvidia", "cpu")][:1]
        special = [key for key in exact if key not in ("hopper", "blackwell", "nvidia", "cpu")][:1]
        for key in (*general, *special):
            inner = self._mapping(overrides, key, f"{path}hardware_overrides.")
            place = f"{path}hardware_overrides.{key}."
            self.recipe.keys(inner, "override", place)
            self._layer(inner, "extra_args", "extra_env", place)

    def _ranks(self, given: Any) -> int | None:
        if isinstance(given, dict):
            given = next((given[k] for k in (*self.ids, "default") if k in given), None)
        return given if type(given) is int and given > 0 else None

    def _features(self, strategy: str) -> None:
        """Those that are on by default, those that are asked for, and what the variant turns on."""
        features = self._mapping(self.document, "features", "")
        modes = self._mapping(self.variant, "default_modes", f"variants.{self.key}.")
        optional = set(map(str, self.document.get("opt_in_features") or ()))
        by_hardware = self._mapping(self.document, "hardware_opt_in_features", "")
        for key in self.ids:
            optional |= set(map(str, by_hardware.get(key) or ()))
        if missing := [name for name in self.wanted if name not in features]:
            raise RunbookError(
                f"{self.recipe.file} has no feature {missing[0]!r}",
                code="recipe_feature",
                exit_code=USAGE,
                remedy=f"name one of {', '.join(features) or 'none'} with --feature",
            )
        for name in features:
            feature = self._mapping(features, name, "features.")
            path = f"features.{name}."
            self.recipe.keys(feature, "feature", path)
            if name in optional and name not in self.wanted and name not in modes:
                self.recipe.left_out.append(f"feature {name}: --feature {name} takes it")
                continue
            allowed = feature.get("strategies")
            if isinstance(allowed, list) and strategy not in allowed:
                told = f"feature {name}: not for {strategy}"
                self.recipe.left_out.append(told)
                continue
            if "companion" in feature:
                told = f"feature {name}: the process that it wants beside the server"
                self.recipe.left_out.append(told)
            if "modes" in feature:
                self._mode(feature, name, str(modes.get(name) or ""))
            else:
                self._feature(feature, path)

    def _mode(self, feature: Node, name: str, default: str) -> None:
        modes = self._mapping(feature, "modes", f"features.{name}.")
        path = f"features.{name}.modes."
        able = []
        for key in modes:
            mode = self._mapping(modes, key, path)
            self.recipe.keys(mode, "mode", f"{path}{key}.")
            barred = self._mapping(mode, "hardware", f"{path}{key}.")
            variants = mode.get("variants")
            fits = not isinstance(variants, list) or self.key in variants
            if fits and not any(barred.get(one) == "unsupported" for one in self.ids):
                able.append(key)
        wanted = (default, str(feature.get("default_mode") or ""), *able)
        chosen = next((key for key in wanted if key in able), None)
        if chosen is None:
            told = f"feature {name}: no mode for this variant and hardware"
            self.recipe.left_out.append(told)
            return
        if others := [key for key in modes if key != chosen]:
            told = f"feature {name}: modes {', '.join(others)}; taken is {chosen}"
            self.recipe.left_out.append(told)
        self._feature(self._mapping(modes, chosen, path), f"{path}{chosen}.")

    def _feature(self, node: Node, path: str) -> None:
        """The arguments of a feature; those for this hardware go in their place."""
        overrides = self._mapping(node, "hardware_overrides", path)
        key = next((key for key in self.ids if key in overrides), None)
        own = self._mapping(overrides, key, path) if key else node
        if key:
            self.recipe.keys(own, "override", f"{path}hardware_overrides.{key}.")
        self._layer(own, "args", "extra_env", path)

    def _elsewhere(self) -> Iterator[str]:
        """What a recipe says of installing, which a book does its own way."""
        if self.document.get("dependencies"):
            listed = self.document["dependencies"]
            commands = [
                str(entry.get("command"))
                for entry in (listed if isinstance(listed, list) else [])
                if isinstance(entry, dict)
            ]
            yield f"dependencies ({'; '.join(commands)}): the environment is locked"
        if self.model.get("install"):
            yield "model.install: the environment is locked"
        if self.model.get("nightly_required") or self.variant.get("nightly_required"):
            yield "nightly_required: a locked release is installed"

    def _mapping(self, node: Node, key: str, path: str) -> Node:
        """The mapping at a key; empty if it is not there, or null."""
        found = node.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise malformed(self.recipe.file, path + key, "it is no mapping")
        return found
