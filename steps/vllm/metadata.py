"""The texts in a wheel that hold its name and version, edited."""

from __future__ import annotations

import re
from collections.abc import Collection

from runbook.steps.common.packages.wheel import WheelError, WheelName


def edit_metadata(data: bytes, name: WheelName, drop_requirements: Collection[str]) -> bytes:
    """METADATA with the new name and version, and without the requirements named. Only the
    headers are edited: the description may quote such lines."""
    from packaging.utils import canonicalize_name

    headers, blank, body = data.decode().partition("\n\n")
    dropped = {canonicalize_name(requirement) for requirement in drop_requirements}
    lines = []
    for line in headers.split("\n"):
        key, _, value = line.partition(":")
        value = value.strip()
        if key == "Name":
            line = f"Name: {name.distribution.replace('_', '-')}"
        elif key == "Version":
            line = f"Version: {name.version}"
        elif key == "Requires-Dist":
            requirement = re.match(r"[A-Za-z0-9._-]+", value)
            if requirement is not None and canonicalize_name(requirement[0]) in dropped:
                continue
        lines.append(line)
    return ("\n".join(lines) + blank + body).encode()


def edit_wheel(data: bytes, tag: str) -> bytes:
    """WHEEL with the tags of the file name, expanded as the specification asks."""
    lines = [line for line in data.decode().splitlines() if line and not line.startswith("Tag:")]
    pythons, abis, platforms = (part.split(".") for part in tag.split("-"))
    lines += [f"Tag: {p}-{a}-{q}" for p in pythons for a in abis for q in platforms]
    return ("\n".join(lines) + "\n").encode()


def edit_version(data: bytes, version: str) -> bytes:
    """vLLM's `_version.py`, as setuptools-scm writes it, with another version.

    Raises `WheelError` if it is of another form.
    """
    public, _, local = version.partition("+")
    parts = [int(part) if part.isdecimal() else part for part in public.split(".")]
    whole = tuple([*parts, local] if local else parts)
    text = data.decode()
    for names, value in (
        (r"(?:__version__ = version|version = __version__)", version),
        (r"(?:__version_tuple__ = version_tuple|version_tuple = __version_tuple__)", whole),
    ):
        text, count = re.subn(
            rf"^({names} = ).*$",
            lambda match, value=value: match[1] + repr(value),  # type: ignore[misc]
            text,
            flags=re.MULTILINE,
        )
        if count != 1:
            raise WheelError(f"_version.py has {count} lines that assign {names}, expected one")
    return text.encode()
