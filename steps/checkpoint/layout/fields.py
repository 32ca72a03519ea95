"""The fields of a config.json, which may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST = 1 << 31
"""No dimension of a model is larger."""


class ConfigError(ValueError):
    """config.json does not define the architecture that it names."""


class MissingField(ConfigError):
    """config.json lacks a field without which the architecture is not defined."""

    def __init__(self, field: str) -> None:
        super().__init__(f"it lacks {field}")


class UnknownArchitecture(Exception):
    """config.json names no architecture that is known here; `names` are those it has."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(names)) or "none")
        self.names = names


def names_of(config: Mapping[str, Any]) -> frozenset[str]:
    """The names under which a config knows its architecture: `architectures` and `model_type`."""
    listed = config.get("architectures")
    found = [*(listed if isinstance(listed, list) else ()), config.get("model_type")]
    return frozenset(name for name in found if isinstance(name, str) and name)


class Fields:
    """Numbers of a config by name; each look-up says what is wrong with what is there."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def __getattr__(self, name: str) -> int:
        """A whole number from 1. Raises `ConfigError`."""
        value = self.config.get(name)
        if value is None:
            raise MissingField(name)
        return natural(name, value)

    def count(self, name: str) -> int:
        """A whole number from 0; 0 if the field is absent, or anything else."""
        value = self.config.get(name)
        return value if type(value) is int and 0 < value <= LARGEST else 0

    def whole(self, name: str) -> int:
        """A whole number from 0. Raises `ConfigError`."""
        value = self.config.get(name)
        if value is None:
            raise MissingField(name)
        return natural(name, value, 0)

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers from 0. Raises `ConfigError`."""
        value = self.config.get(name)
        if value is None:
            raise MissingField(name)
        if not isinstance(value, list):
            raise ConfigError(f"{name} is {shown(value)}, not a list")
        return [natural(name, number, 0) for number in value]


def natural(name: str, value: Any, least: int = 1) -> int:
    if type(value) is int and least <= value <= LARGEST:
        return value
    raise ConfigError(f"{name} is {shown(value)}, not a whole number from {least}")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
