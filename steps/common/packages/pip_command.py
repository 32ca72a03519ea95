"""The two things asked of pip: fetch wheels as the user's pip is configured, unpack wheels."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from runbook.protocol import Context, PreconditionNotMet, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common import tether
from runbook.steps.common.packages.pins import Pin
from runbook.steps.common.packages.symptoms import DISK_FULL, Symptom, diagnose
from runbook.steps.common.packages.watch import progress_of

# The first that matches decides: an unreachable index also reports "No matching distribution".
SYMPTOMS = (
    DISK_FULL,
    Symptom(
        r"DO NOT MATCH THE HASHES",
        "hash_mismatch",
        "the package index gave a wheel that is not the locked one",
        Remedy(
            "run",
            text="{command}; if it stays so, the index or mirror that pip uses serves another file "
            "under this name: use another one",
        ),
        retryable=True,
    ),
    Symptom(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ConnectionResetError"
        r"|ProtocolError|RemoteDisconnected|SSLError|ProxyError|IncompleteRead"
        r"|connection broken|HTTP error 5\d\d|5\d\d Server Error",
        "index_unreachable",
        "the package index cannot be reached, or broke off",
        Remedy(
            "run",
            text="check the network and `pip config list` (index-url, proxy, cert), then {command}",
        ),
        retryable=True,
    ),
    Symptom(
        r"No matching distribution found|HTTP error 404|404 Client Error",
        "package_not_found",
        "the package index has no such wheel",
        Remedy(
            "run",
            text="let pip use an index or mirror that has it (`pip config set global.index-url "
            "URL`), then {command}",
        ),
    ),
)


def _run(ctx: Context, arguments: Sequence[str | Path], temporary: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise PreconditionNotMet(
            "the Python that runs runbook has no pip",
            code="pip_missing",
            cause=sys.executable,
            remedy=f"{sys.executable} -m ensurepip",
        )
    lines: list[str] = []
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        ctx.run(
            tether.command("pip", *arguments),
            env={"TMPDIR": str(temporary)},
            on_line=lines.append,
        )
    except StepFailure as failure:
        raise diagnose("\n".join(lines), SYMPTOMS) or failure from failure


def download(ctx: Context, pins: Sequence[Pin], folder: Path, *options: str) -> None:
    """Fetch wheels into `folder`, each checked against its hash by pip.

    Index, mirror, proxy and certificates are those of the user's pip configuration. After a
    kill, complete wheels can be anywhere below `folder`. `options` are more of pip's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(pin.requirement() for pin in pins))
    with progress_of(ctx, folder, sum(pin.bytes for pin in pins), "downloading wheels"):
        _run(
            ctx,
            [
                "download",
                "--require-hashes",
                "--no-deps",
                "--only-binary=:all:",
                "--no-cache-dir",  # the wheels are kept once, in the cache of runbook
                "--progress-bar=off",
                "--disable-pip-version-check",
                f"--dest={folder / 'done'}",
                f"--requirement={requirements}",
                *options,
            ],
            folder / "tmp",
        )


def unpack(ctx: Context, files: Sequence[Path], folder: Path, total: int) -> Path:
    """Install wheel files into a new tree below `folder` and give its path.

    `total` is the number of bytes that they unpack to. The user's configuration is left out: no
    index is asked, and options such as `user` would be in the way.
    """
    tree = folder / "tree"
    with progress_of(ctx, folder, total, "unpacking wheels"):
        _run(
            ctx,
            [
                "--isolated",
                "install",
                "--no-deps",
                "--no-index",
                "--no-compile",
                "--no-cache-dir",
                "--progress-bar=off",
                "--disable-pip-version-check",
                "--root-user-action=ignore",
                f"--target={tree}",
                *files,
            ],
            folder / "tmp",
        )
    return tree
