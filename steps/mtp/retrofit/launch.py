"""Starts this package by its path: `python .../retrofit/launch.py VERB ...`.

The environment that has torch need not have runbook, so the package is imported on its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NAME = "mtp_retrofit"


def package() -> ModuleType:
    """This folder as the package `mtp_retrofit`."""
    if NAME not in sys.modules:
        folder = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location(
            NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


if __name__ == "__main__":
    package()
    sys.exit(importlib.import_module(f"{NAME}.cli").main())
