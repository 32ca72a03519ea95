"""Where the details of an internal error go: a file, never the screen."""

from __future__ import annotations

import os
from pathlib import Path

from runbook import redact


def write(error: BaseException, state: Path | None) -> Path:
    """Write a traceback into the state folder (else the temporary folder); returns the file, which
    is /dev/null if neither can be written."""
    import platform
    import sys
    import tempfile
    import traceback

    import runbook

    text = "".join(traceback.format_exception(error))
    header = f"runbook {runbook.__version__}, Python {platform.python_version()}, {sys.argv[1:]}\n"
    report = redact.of_this_process().text(header + text).encode(errors="backslashreplace")
    for folder in (state, None):
        if folder is not None and not folder.is_dir():
            continue
        try:
            descriptor, name = tempfile.mkstemp(prefix="crash-", suffix=".txt", dir=folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(report)
        except OSError:
            continue
        return Path(name)
    return Path(os.devnull)
