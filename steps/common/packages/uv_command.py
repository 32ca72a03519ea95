"""uv, with the indexes that pip is configured with, and its failures in words."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.remedy import Remedy
from runbook.steps.common import tether
from runbook.steps.common.packages.indexes import (
    pip_settings,
    uv_environment,
    uv_index_options,
    without_credentials,
)
from runbook.steps.common.packages.symptoms import DISK_FULL, Symptom
from runbook.steps.common.packages.watch import while_writing

_DOWNLOADING = re.compile(r"Downloading (\S+) \(([\d.]+)([KMG]iB)\)")
_DOWNLOADED = re.compile(r" Downloaded (\S+)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_TAIL = 15
"""Lines of uv's output that a failure quotes."""

_ELSEWHERE = Remedy(
    "run",
    text="set PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to where it is, then {command}",
)
# The first that matches decides. uv wraps its lines, so they are matched with all white space
# made single blanks.
SYMPTOMS = (
    DISK_FULL,
    Symptom(
        r"[Hh]ash mismatch|DO NOT MATCH THE HASHES",
        "hash_mismatch",
        "a package of {what} is not the one that was locked",
        "use an index that serves the original files (pip config list), or make a lock from yours "
        "(make lock)",
    ),
    Symptom(
        r"has no wheels with a matching|has no usable wheels",
        "wheel_not_offered",
        "the package index has no wheel of {what} for this Python or machine",
        _ELSEWHERE,
        precondition=True,
    ),
    Symptom(
        r"there (?:is|are) no versions? of (?P<name>[\w.-]+)==(?P<version>[\w.+!-]+?)[.,]? ",
        "package_not_offered",
        "the package index does not offer {name} {version}",
        _ELSEWHERE,
        precondition=True,
    ),
    Symptom(
        r"(?P<name>[\w.-]+) was not found in the (?:package registry|provided package loc)",
        "package_not_offered",
        "the package index does not offer {name}",
        _ELSEWHERE,
        precondition=True,
    ),
    Symptom(
        r"dns error|[Cc]onnection (?:refused|reset|error)|[Cc]ould not (?:fetch|connect)|timed out"
        r"|Temporary failure in name resolution|error sending request"
        r"|Failed to (?:fetch|download)",
        "index_unreachable",
        "the package index did not answer while installing {what}",
        Remedy(
            "run",
            text="{command} (what was downloaded is kept); behind a proxy set PIP_PROXY, for a "
            "mirror PIP_INDEX_URL",
        ),
        retryable=True,
    ),
)


def explain(failure: StepFailure, lines: Sequence[str], what: str) -> StepFailure:
    """A failure of uv in terms its user can act on, from what it printed while it worked on
    `what`."""
    tail = "\n".join(without_credentials(line) for line in lines[-_TAIL:])
    text = re.sub(r"\s+", " ", " ".join(lines))
    for symptom in SYMPTOMS:
        if found := re.search(symptom.pattern, text):
            explained = symptom.failure(found, tail)
            explained.message = explained.message.replace("{what}", what)
            return explained
    failure.cause = tail or failure.cause
    return failure


def file_requirement(name: str, wheel: Path, sha256: str) -> str:
    """A requirement line for a wheel on this machine."""
    return f"{name} @ file://{urllib.parse.quote(str(wheel))} --hash=sha256:{sha256}"


def uv(ctx: Context, *arguments: str | Path, what: str, find_links: Path | None = None) -> None:
    """Run uv with the indexes that pip is configured with, and with the wheels in the folder
    `find_links`; raises what `explain` makes of its failure.

    Progress is in bytes of the downloads that uv announces (those of more than 1 MiB), and is
    reported anew while uv writes: one large package on a slow line may take very long.
    """
    settings = pip_settings()
    variables = uv_environment(settings, os.environ)
    if find_links is not None:
        present = variables.get("UV_FIND_LINKS") or os.environ.get("UV_FIND_LINKS")
        variables["UV_FIND_LINKS"] = ",".join(filter(None, (present, str(find_links))))
    lines: list[str] = []
    sizes: dict[str, float] = {}
    received: set[str] = set()

    def report() -> None:
        done = sum(sizes[name] for name in received & sizes.keys())
        ctx.progress(done, sum(sizes.values()) or None, "bytes", f"install packages of {what}")

    def follow(line: str) -> None:
        lines.append(line)
        if started := _DOWNLOADING.match(line):
            sizes[started[1]] = float(started[2]) * _UNITS[started[3]]
        elif ended := _DOWNLOADED.match(line):
            received.add(ended[1])
        else:
            return
        report()

    try:
        with while_writing(report):
            ctx.run(
                tether.command("uv", *arguments, *uv_index_options(settings)),
                env=variables,
                on_line=follow,
            )
    except StepFailure as failure:
        raise explain(failure, lines, what) from failure
