"""What vLLM must be told of a model, from `families.yaml`: parsers, tokenizer mode, flags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from runbook.steps.common.shipped import shipped
from runbook.steps.new.model import Model

TOOLS = "tools"
"""The variable by which a chat template shows the tools on offer."""
THINKING = ("enable_thinking", "thinking")
"""Variables by which chat templates turn thinking on and off."""
THOUGHTS = ("<think", "</think", "[THINK]", "<|channel|>", "reasoning")
"""Marks of templates whose models reason apart from their answer."""

LISTS = ("architectures", "template", "without")


@dataclass(frozen=True)
class Family:
    """An entry of `families.yaml`, which describes the fields."""

    source: str
    architectures: tuple[str, ...] = (".*",)
    template: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    gives: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    encodes: bool = False
    thinking: str = ""
    cpu: str | bool = "avx2"

    def fits(self, model: Model) -> bool:
        names = any(
            re.fullmatch(pattern, name)
            for pattern in self.architectures
            for name in model.architectures
        )
        text = model.template
        return (
            names
            and all(mark in text for mark in self.template)
            and not any(mark in text for mark in self.without)
        )


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    return tuple(map(_family, shipped(Path(__file__).with_name("families.yaml"))))


def _family(entry: dict[str, Any]) -> Family:
    lists = {name: tuple(entry[name]) for name in LISTS if name in entry}
    values: dict[str, Any] = {**entry, **lists}
    return Family(**values)


def of(model: Model) -> list[Family]:
    """The entries that fit a model, in their order."""
    return [family for family in families() if family.fits(model)]


def given(found: list[Family], name: str) -> tuple[str, str] | None:
    """What the first entry says that gives this name, and where that is known from."""
    return next(((f.gives[name], f.source) for f in found if name in f.gives), None)


def flags(found: list[Family]) -> dict[str, Any]:
    return {k: v for family in reversed(found) for k, v in family.flags.items()}


def encodes(found: list[Family]) -> bool:
    """Whether vLLM writes the prompts of this model itself."""
    return any(family.encodes for family in found)


def offers_tools(model: Model) -> bool:
    """Whether the chat template has a place for tools."""
    return re.search(rf"\b{TOOLS}\b", model.template) is not None


def reasons(model: Model) -> bool:
    """Whether there is a mark of reasoning in the chat template."""
    return any(mark in model.template for mark in THOUGHTS)


def thinking(found: list[Family], model: Model) -> str:
    """The variable of the prompt that turns thinking on and off; "" if none is known."""
    known: Iterator[str] = (family.thinking for family in found if family.thinking)
    marked = (n for n in THINKING if re.search(rf"\b{n}\b", model.template))
    return next(known, "") or next(marked, "")
