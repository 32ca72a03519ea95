"""Where the kinds of step are found: shipped ones by name, the user's own by file and class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def known_steps() -> Iterable[str]:
    """The names that `uses:` accepts without a path, in alphabetical order."""
    raise NotImplementedError


def load_step(uses: str, folder: str | Path) -> Any:
    """An instance of the step that `uses` names; a relative file is taken from `folder`."""
    raise NotImplementedError
