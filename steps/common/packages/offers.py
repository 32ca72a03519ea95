"""Which package index offers a pinned wheel, asked of uv without downloading the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from runbook.protocol import PreconditionNotMet
from runbook.remedy import Remedy
from runbook.steps.common.packages.indexes import (
    pip_settings,
    uv_environment,
    uv_index_options,
    without_credentials,
)
from runbook.steps.common.vllm_release import OwnIndex, OwnWheel

_LACKS = re.compile(
    r"there (?:is|are) no version|no wheels with a matching|no usable wheels|was not found in"
    r"|[Hh]ash mismatch|no version of"
)
_SECONDS = 90
"""The longest that one question may take."""

Answer = str
"""`offers`, `lacks`, else why the indexes cannot be asked, in words."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a wheel is to be had: `index` is "" for the configured indexes. `known` is False
    where the indexes did not answer, so that only the installation can tell."""

    wheel: OwnWheel
    index: str = ""
    known: bool = True

    def __str__(self) -> str:
        what = f"{self.wheel.name} {self.wheel.version}"
        if not self.known:
            return f"the package indexes do not answer, so where {what} comes from is not known"
        if not self.index:
            return f"{what} comes from the configured package indexes"
        return f"{what} comes from {self.index}, since the configured package indexes lack it"


def source_of(own: OwnIndex, python: str) -> Source | None:
    """Where to get the wheel that plain indexes lack, for a minor version of Python; None if
    there is none for this machine. The publisher's own index is asked only if the configured ones
    lack the wheel, and never where indexes are switched off. Where they do not answer, or have
    another file under its name, the installation finds out. Raises `PreconditionNotMet` if nobody
    offers it."""
    wheel = own.wheel(python)
    if wheel is None:
        return None
    settings = pip_settings()
    environ = {**os.environ, **uv_environment(settings, os.environ)}
    options = uv_index_options(settings)
    answer = _ask(wheel, python, environ, options)
    if answer != "lacks":
        return Source(wheel, known=answer == "offers")
    said, silent = "the configured indexes lack it", False
    if not options and not any(_set(name) for name in ("UV_NO_INDEX", "UV_OFFLINE")):
        more = " ".join(filter(None, (environ.get("UV_INDEX"), own.url)))
        # Not from what uv remembers: pip is to fetch it there.
        options = ["--refresh-package", wheel.name]
        own_answer = _ask(wheel, python, {**environ, "UV_INDEX": more}, options)
        if own_answer == "offers":
            return Source(wheel, own.url)
        silent = own_answer != "lacks"
        said += f"\n{own.url}: {own_answer if silent else 'lacks it too'}"
    raise PreconditionNotMet(
        f"no package index offers {wheel.name} {wheel.version} for Python {python}",
        code="wheel_not_offered",
        cause=said,
        retryable=silent,
        remedy=Remedy(
            "run",
            text=f"let this machine reach {own.url}, or set PIP_EXTRA_INDEX_URL to a mirror of it, "
            f"or PIP_FIND_LINKS to a folder with {wheel.file}; then {{command}}",
        ),
    )


def _ask(wheel: OwnWheel, python: str, environ: Mapping[str, str], options: list[str]) -> Answer:
    """What uv, with the indexes of `environ`, says about a wheel; in words where it failed."""
    with tempfile.TemporaryDirectory() as nowhere:
        command = [
            *(sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:", "--no-progress"),
            *("--target", nowhere, "--python-version", python, *options, "--requirement", "-"),
        ]
        try:
            answer = subprocess.run(
                command,
                input=f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n",
                env={"UV_HTTP_RETRIES": "1", **environ},
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {_SECONDS} s"
    if answer.returncode == 0:
        return "offers"
    text = re.sub(r"\s+", " ", without_credentials(answer.stderr)).strip()
    return "lacks" if _LACKS.search(text) else text.rpartition("cause: ")[2][-200:]


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
