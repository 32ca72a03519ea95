"""The free choices of a server: which values of which flags may be tried, and a profile of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from runbook.steps.common.flags.command import overlay

UNSET = "as it is"
"""The value of a choice of which the book says nothing: what vLLM makes of it."""

Values = dict[str, Any]
"""One value of each choice, by the choice's name."""


def choices(given: Mapping[str, Any], profile: str | None) -> dict[str, list[Any]]:
    """What the step offers, and over it what the profile does."""
    told = (given.get("profiles") or {}).get(profile) or {}
    return {**(given.get("choices") or {}), **(told.get("choices") or {})}


def present(flags: SimpleNamespace, name: str) -> Any:
    """The value that a choice has now; `UNSET` where nothing is said of it. Further arguments are
    added to those there are, so none are."""
    if name == "extra_args":
        return []
    values = vars(flags)
    top, _, rest = name.partition(".")
    if top == "env":
        return overlay(values["env"]).get(rest, UNSET)
    held = values.get(top)
    if rest:
        held = held.get(rest) if isinstance(held, dict) else None
    return UNSET if held is None else held


def profile(flags: SimpleNamespace, values: Values) -> dict[str, Any]:
    """The profile that gives these values over the flags, and nothing else."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        top, _, rest = name.partition(".")
        if value == UNSET or (top == "extra_args" and not value):
            continue
        if top == "env":
            made.setdefault("env", [{}])[0][rest] = str(value)
        elif rest:
            whole = made.get(top) or dict(getattr(flags, top, None) or {})
            made[top] = {**whole, rest: value}
        else:
            made[top] = value
    return made


def neighbours(values: Values, offered: Mapping[str, list[Any]], name: str) -> list[Values]:
    """The same values but for one choice, which takes each of the others it offers."""
    return [{**values, name: other} for other in offered[name] if other != values[name]]
