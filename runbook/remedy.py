"""What mends a fault, as data: no text knows a book, a workspace or the id of a step."""

from __future__ import annotations

from dataclasses import dataclass

STEP = "{step}"
"""In the arguments of a remedy: the id that the step has in the document at hand."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A command of runbook that mends something. The engine renders it as a complete command for
    the book, workspace and inputs at hand.

    `kind` names the kind of step that is meant, for `{step}` in the arguments; without one it is
    the step that failed. `text` is the sentence around the command, which stands at `{command}`.
    """

    verb: str
    arguments: tuple[str, ...] = ()
    kind: str = ""
    text: str = "{command}"

    def __str__(self) -> str:
        """The sentence with the command in backticks, to be completed where the book is known."""
        arguments = (word.replace(STEP, self.kind or STEP) for word in self.arguments)
        return self.text.replace("{command}", f"`{' '.join(['runbook', self.verb, *arguments])}`")
