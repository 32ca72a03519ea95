"""Command lines that a shell reads as they were meant, whatever a path has in it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable


def join(words: Iterable[str]) -> str:
    """The words as a line for any POSIX shell."""
    return " ".join(map(quote, words))


def quote(word: str) -> str:
    """One word. What no terminal or JSON carries, bytes that are not UTF-8 and control characters,
    is written in digits, which printf(1) reads. Of newlines at the end the shell keeps none."""
    if word.isprintable():
        return shlex.quote(word)
    text = "".join(map(_digits, word))
    text = f"\\055{text[1:]}" if text.startswith("-") else text  # else an option of printf
    return f"\"$(printf '{text}')\""


def _digits(character: str) -> str:
    if character == "%":
        return "%%"
    if character.isprintable() and character not in "\\'":
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
