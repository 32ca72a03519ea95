"""The environment that vLLM is installed into.

```
<workspace>/venv -> venv.<digest>     switched by a rename, so it is the old one or the new one
<workspace>/venv.<digest>/            built in place, since environments hold absolute paths
    runbook.json                      written last: without it the folder is unfinished
```
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runbook.files import sync_folder
from runbook.protocol import Context, PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common.stamp import RESULT, Stamp, marks
from runbook.steps.common.store import key_of

LINK = "venv"
DIGEST = "[0-9a-f]" * 8
STAMP = "runbook.json"
KIND = "vllm"
_TEXTS = ("version", "wheel", "wheel_sha256", "patch_digest")
RECIPE = "1"
"""Part of an environment's digest: change it when `install` makes another environment."""


def environment_folder(workspace: Path, recipe: Mapping[str, Any]) -> Path:
    """Where the environment made from `recipe` (plain data) lies."""
    return workspace / f"{LINK}.{key_of({**recipe, 'recipe': RECIPE})[:8]}"


def read_stamp(folder: Path) -> Stamp | None:
    """What an environment was made from; None if it is unfinished or not there."""
    stamp = Stamp.read(folder / STAMP, KIND)
    return stamp if stamp is not None and stamp.complete and _is_made(stamp.made) else None


def _is_made(made: Mapping[str, Any]) -> bool:
    """Whether a record has all that it should: what it names is read, and by its digest removed."""
    names = made.get("environment_variables")
    return (
        all(isinstance(made.get(name), str) for name in _TEXTS)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and all(re.fullmatch(r"[0-9a-f]{64}", made[f]) for f in ("wheel_sha256", "patch_digest"))
        and re.fullmatch(r"dist/[^/]+\.whl", made["wheel"]) is not None
    )


def site_packages(folder: Path) -> Path:
    found = sorted(folder.glob("lib/python3.*/site-packages"))
    if len(found) != 1:
        raise StepFailure(
            f"{folder} is not a Python environment",
            code="environment_damaged",
            remedy=Remedy("run", ("--force", "{step}"), kind="vllm"),
        )
    return found[0]


def changed_files(folder: Path, stamp: Stamp) -> list[str]:
    """What became of the recorded files that are gone or differ from their marks."""
    recorded = stamp.files.get(RESULT, {})
    present = marks(folder, recorded)
    return [
        f"{name} was changed" if name in present else f"{name} is gone"
        for name, known in recorded.items()
        if present.get(name) != known
    ]


def create(ctx: Context, folder: Path, python: str) -> None:
    """An empty environment with the given minor version of Python; what was there is removed."""
    from runbook.steps.common import tether
    from runbook.steps.common.packages.indexes import UNSEEDED

    remove(folder)
    ctx.run(
        tether.command("uv", "venv", "--quiet", "--python", python, folder),
        env={
            "UV_PYTHON_DOWNLOADS": os.environ.get("UV_PYTHON_DOWNLOADS", "never"),
            **UNSEEDED,
        },
        failure=PreconditionNotMet(
            f"there is no Python {python} on this machine",
            code="python_missing",
            remedy=Remedy(
                "run", text=f"`{sys.executable} -m uv python install {python}`, then {{command}}"
            ),
        ),
    )


def switch(workspace: Path, folder: Path) -> None:
    """Make `venv` name this environment. Of the others only the one it replaces is kept: a
    server started from it may still run."""
    link = workspace / LINK
    previous = link.readlink().name if link.is_symlink() else None
    if previous != folder.name:
        if link.is_dir() and not link.is_symlink():
            raise PreconditionNotMet(
                f"{link} is in the way: a folder that this step did not make",
                code="path_in_use",
                remedy=Remedy("run", text=f"`mv {link} {link}.old`, then {{command}}"),
            )
        new = workspace / f".{LINK}.{os.getpid()}"
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.replace(link)
        sync_folder(workspace)
    for other in environments(workspace):
        if other.name not in (folder.name, previous):
            remove(other)


def environments(workspace: Path) -> list[Path]:
    """Those this step made: `venv.` and a digest. A user's own `venv.old` is not."""
    return sorted(path for path in workspace.glob(f"{LINK}.{DIGEST}") if path.is_dir())


def remove(folder: Path) -> None:
    """Remove an environment, its stamp first: a half removed one is never taken as whole."""
    import shutil

    if folder.is_dir():
        (folder / STAMP).unlink(missing_ok=True)
        shutil.rmtree(folder)
