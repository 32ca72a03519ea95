"""Which modules a list of targets names: exact names, and `re:` followed by an expression.

A config may come from anyone, so expressions are matched in time linear in the text (RE2), never by
backtracking. What RE2 does not know (look-around, references) is told apart and matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

PREFIX = "re:"
MOST = 20_000
"""Characters of expressions in one list that are looked at; those of known checkpoints have a few
hundred."""


class Patterns:
    """A list of targets. `invalid` are expressions that Python cannot compile either, `unexamined`
    those that are valid and not matched here."""

    def __init__(self, targets: Iterable[str]) -> None:
        given = tuple(targets)
        self.exact = frozenset(target for target in given if not target.startswith(PREFIX))
        self._texts = tuple(target[len(PREFIX) :] for target in given if target.startswith(PREFIX))

    @classmethod
    def of_globs(cls, globs: Iterable[str]) -> Patterns:
        """Of names in which `*` stands for any characters."""
        return cls(
            f"{PREFIX}{re.escape(glob).replace(re.escape('*'), '.*')}$" if "*" in glob else glob
            for glob in globs
        )

    def match(self, name: str) -> bool:
        """Whether a target is this name, or an expression matches it from its start."""
        return name in self.exact or any(e.match(name) for e in self._compiled[0])

    @property
    def invalid(self) -> list[str]:
        return self._compiled[1]

    @property
    def unexamined(self) -> list[str]:
        return self._compiled[2]

    @cached_property
    def _compiled(self) -> tuple[list[Any], list[str], list[str]]:
        if not self._texts:
            return [], [], []
        import re2

        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        good: list[str] = []
        invalid: list[str] = []
        unexamined: list[str] = []
        length = 0
        for text in dict.fromkeys(self._texts):
            length += len(text)
            if length > MOST:
                unexamined.append(text)
                continue
            try:
                re2.compile(text, options)
                good.append(text)
            except (re2.error, UnicodeEncodeError):
                (unexamined if _valid(text) else invalid).append(text)
        return list(_joined(good, options)), invalid, unexamined


def _valid(text: str) -> bool:
    """Whether Python's `re`, which vLLM uses, can compile an expression."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _joined(texts: list[str], options: Any) -> Iterator[Any]:
    """One expression that matches what any of them does; each by itself if that is too large."""
    import re2

    if not texts:
        return
    try:
        yield re2.compile("|".join(f"(?:{text})" for text in texts), options)
    except re2.error:
        for text in texts:
            yield re2.compile(text, options)
