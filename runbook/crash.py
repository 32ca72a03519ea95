"""Where the details of an internal error go: a file, never the screen."""

from __future__ import annotations

import os
from pathlib import Path


def write(error: BaseException, state: Path | None) -> Path:
    """Write a traceback into the state folder (else the temporary folder); returns the file."""
    import platform
    import sys
    import tempfile
    import traceback

    import runbook

    text = "".join(traceback.format_exception(error))
    header = f"runbook {runbook.__version__}, Python {platform.python_version()}, {sys.argv[1:]}\n"
    folder = state if state is not None and state.is_dir() else Path(tempfile.gettempdir())
    descriptor, name = tempfile.mkstemp(prefix="crash-", suffix=".txt", dir=folder)
    with os.fdopen(descriptor, "w") as file:
        file.write(header + text)
    return Path(name)
