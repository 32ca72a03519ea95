"""Arguments of `vllm serve`, as recipes write them, as flags with values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from runbook.steps.common.flags.models import Flags

Units = dict[str, str | None]
"""Value by flag as it is written, with its dashes; None without one. The last of a name wins."""


def units(arguments: Sequence[str]) -> Units:
    """Flags with their values: `--a 1`, `--a=1` and `--a`. What belongs to no flag is dropped by
    vLLM's own parser too, and raises ValueError here."""
    found: Units = {}
    flag = ""
    for word in arguments:
        if word.startswith("-") and not _number(word):
            name, given, value = word.partition("=")
            flag = "" if given else word
            found.pop(name, None)
            found[name] = value if given else None
        elif flag:
            found[flag] = word
            flag = ""
        else:
            raise ValueError(f"{word!r} belongs to no flag")
    return found


def _number(word: str) -> bool:
    return word[1:2].isdigit()


def field(flag: str) -> tuple[str, bool]:
    """The name of a flag as vLLM's settings have it, and whether it is switched off by `--no-`."""
    name = flag.lstrip("-").replace("-", "_")
    if name.startswith("no_") and name not in Flags.model_fields:
        return name.removeprefix("no_"), True
    return name, False


def value(text: str | None, off: bool = False) -> Any:
    """What a flag's text means: JSON where it is, else itself; without one, true."""
    if text is None:
        return not off
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def known(flag: str, flags: Sequence[str]) -> bool:
    """Whether a vLLM with these flags knows one. Short ones and parts of a setting (`--a.b`) are
    told by their beginning."""
    if not flag.startswith("--"):
        return True  # short forms are not in the registry
    name = flag.removeprefix("--").partition(".")[0].replace("_", "-")
    return name in flags or name.removeprefix("no-") in flags
