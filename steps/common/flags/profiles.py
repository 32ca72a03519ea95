"""Profiles: which one fits what is asked, and what is known of how each does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

AUTO = "auto"
"""In place of a profile's name: the one that fits `users` and `context`."""


LAYERED = ("env", "extra_args")
"""Flags that add to each other where others replace."""


class NoProfile(ValueError):
    """No profile holds that many users at that length of context."""


def choose(profiles: Mapping[str, Mapping[str, Any]], users: int, context: int) -> tuple[str, str]:
    """The profile that fits, and why in words: of those with enough sequences and context the one
    with the shortest context, then the fewest sequences, so that least memory waits unused."""
    fitting = {
        name: (told["max_model_len"], told["max_num_seqs"])
        for name, told in profiles.items()
        if (told.get("max_model_len") or 0) >= context and (told.get("max_num_seqs") or 0) >= users
    }
    asked = f"{users} users at {context:,} tokens"
    if not fitting:
        there = ", ".join(
            f"{name} ({told.get('max_num_seqs')} at {told.get('max_model_len') or 0:,})"
            for name, told in profiles.items()
        )
        raise NoProfile(f"no profile holds {asked}; there are {there}")
    name = min(fitting, key=lambda one: fitting[one])
    length, sequences = fitting[name]
    return name, f"{name} holds {sequences} users at {length:,} tokens; asked are {asked}"


def chosen(given: Mapping[str, Any]) -> tuple[str | None, str]:
    """The profile that a step's inputs ask for, and why if it was chosen. Raises `NoProfile`."""
    name, profiles = given.get("profile"), given.get("profiles") or {}
    if name != AUTO:
        return name, ""
    return choose(profiles, given.get("users") or 1, given.get("context") or 1)


def spread(
    given: Mapping[str, Any], unknown: Collection[str] = ()
) -> tuple[dict[str, Any], set[str]]:
    """The inputs with their shared `flags` laid under those beside, and the dotted paths of what
    is not known of them. `env` and `extra_args` of both are taken, the shared ones first."""
    values = {name: value for name, value in given.items() if name != "flags"}
    missing = {path for path in unknown if path.partition(".")[0] != "flags"}
    own = {path.partition(".")[0] for path in missing}
    for name, value in (given.get("flags") or {}).items():
        if name in LAYERED:
            values[name] = [*(value or ()), *(values.get(name) or ())]
        elif values.get(name) is None and name not in own:
            values[name] = value
    for path in unknown:
        if path == "flags":
            missing |= {"*", *LAYERED}
        elif path.startswith("flags."):
            name = path.split(".")[1]
            if name in LAYERED or given.get(name) is None:
                missing.add(path.removeprefix("flags."))
            if values.get(name) is None:
                values.pop(name, None)
    return values, missing


def lay(values: dict[str, Any], told: Mapping[str, Any]) -> None:
    """Lay what a profile gives over the flags `values`."""
    for name, value in told.items():
        if name in LAYERED:
            values[name] = [*(values.get(name) or ()), *value]
        elif value is not None:
            values[name] = value


def described(name: str, told: Mapping[str, Any], default: bool) -> dict[str, Any]:
    """A profile as data: its flags, and its figures with where they come from."""
    flags = {
        key: value
        for key, value in told.items()
        if value not in (None, [], {}) and key not in ("figures", "choices")
    }
    figures = [dict(figure) for figure in told.get("figures") or []]
    return {"name": name, "default": default, "flags": flags, "figures": figures}


def words(figure: Mapping[str, Any]) -> str:
    """`85.5 tokens/s for 1 (reported: the model card; 2 x RTX PRO 6000 Max-Q at 300 W)`."""
    power = f" at {figure['power_watts']} W" if figure.get("power_watts") else ""
    return (
        f"{figure['value']:g} {figure['unit']} for {figure['streams']} "
        f"({figure['kind']}: {figure['source']}; {figure['cards']}{power})"
    )
