"""What mends a fault, as data: no text knows a book, a workspace or the id of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

STEP = "{step}"
"""In the arguments of a remedy: the id that the step has in the document at hand."""
COMMAND = "{command}"


@dataclass(frozen=True, slots=True)
class Remedy:
    """A command of runbook that mends something. The engine renders it as a complete command for
    the book, workspace and inputs at hand.

    `kind` names the kind of step that is meant, or a role of several kinds, for `{step}` in the
    arguments; without one it is the step that failed. `text` is the sentence around the command,
    which stands at `{command}`. `otherwise` is what is said where the command cannot be given,
    because the document has no step of that kind or no such input; without it, the part of `text`
    that does not need the command.
    """

    verb: str
    arguments: tuple[str, ...] = ()
    kind: str = ""
    text: str = COMMAND
    otherwise: str = ""

    def __str__(self) -> str:
        """The sentence for a reader who has no book at hand."""
        arguments = (word.replace(STEP, self.kind or STEP) for word in self.arguments)
        return self.text.replace(COMMAND, f"`{' '.join(['runbook', self.verb, *arguments])}`")


Remedies: TypeAlias = str | Remedy | tuple["str | Remedy", ...]
"""A sentence, a command, or several of them."""


def joined(remedies: Iterable[Any]) -> Remedies:
    """Several remedies as one, each once, in their order; they may be plain data."""
    flat: list[str | Remedy] = []
    for remedy in map(load, remedies):
        flat += remedy if isinstance(remedy, tuple) else [remedy]
    found = tuple(dict.fromkeys(one for one in flat if one))
    return found[0] if len(found) == 1 else found or ""


def dump(remedy: Remedies) -> Any:
    """A remedy as plain data: text as it is, a command as a mapping of its fields, several as a
    list. So it is in journals and in what a worker tells; only answers are rendered."""
    if isinstance(remedy, Remedy):
        fields = {name: getattr(remedy, name) for name in ("kind", "text", "otherwise")}
        defaults = {"kind": "", "text": COMMAND, "otherwise": ""}
        given = {name: value for name, value in fields.items() if value != defaults[name]}
        return {"verb": remedy.verb, "arguments": list(remedy.arguments), **given}
    return remedy if isinstance(remedy, str) else [dump(part) for part in remedy]


def load(data: Any) -> Remedies:
    """A remedy from plain data, also from what another release wrote; damaged data is none."""
    if isinstance(data, (str, Remedy)):
        return data
    if isinstance(data, Mapping):
        arguments = data.get("arguments", ())
        if isinstance(data.get("verb"), str) and isinstance(arguments, Sequence):
            named = {k: str(data[k]) for k in ("kind", "text", "otherwise") if k in data}
            return Remedy(data["verb"], tuple(map(str, arguments)), **named)
        return ""
    if isinstance(data, Sequence):
        parts = (load(part) for part in data)
        return tuple(part for part in parts if isinstance(part, (str, Remedy)) and part)
    return ""
