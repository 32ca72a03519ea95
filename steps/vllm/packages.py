"""The user's package index, as it is configured for pip, for uv.

No index is named here. uv does not read pip's configuration, so its settings are handed over in
the environment, which keeps credentials in index addresses out of command lines and logs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from runbook.protocol import Context, PreconditionNotMet, StepFailure
from runbook.steps.common import tether

_DOWNLOADING = re.compile(r"Downloading (\S+) \(([\d.]+)([KMG]iB)\)")
_DOWNLOADED = re.compile(r" Downloaded (\S+)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

# A later section overrides an earlier one, as in pip: configuration files, then PIP_* variables.
_SECTIONS = ("global", "install", ":env:")
# pip's setting, uv's variable, and what joins several values there.
_TRANSLATION = (
    ("index-url", "UV_DEFAULT_INDEX", None),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", None),
    ("client-cert", "SSL_CLIENT_CERT", None),
    ("proxy", "ALL_PROXY", None),
    ("timeout", "UV_HTTP_TIMEOUT", None),
    ("retries", "UV_HTTP_RETRIES", None),
)
_UV_SYNONYMS = {
    "UV_DEFAULT_INDEX": ("UV_INDEX_URL",),
    "UV_INDEX": ("UV_EXTRA_INDEX_URL",),
}


def pip_settings() -> dict[str, str]:
    """pip's effective settings for `pip install`, by long option name."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if listing.returncode != 0:
        raise PreconditionNotMet(
            "pip cannot read its configuration",
            code="pip_configuration",
            cause=listing.stderr.strip()[-2000:],
            remedy="pip config debug",
        )
    return parse_settings(listing.stdout)


def parse_settings(listing: str) -> dict[str, str]:
    """From the output of `pip config list`, one `section.option='value'` a line."""
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for line in listing.splitlines():
        name, found, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if not found or section not in sections:
            continue
        text = ast.literal_eval(value) if value[:1] in "'\"" else value
        sections[section][option.removeprefix("default-")] = str(text).strip()
    merged: dict[str, str] = {}
    for name in _SECTIONS:
        merged.update(sections[name])
    return merged


def uv_environment(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that make uv use pip's indexes. What the user has set for uv stays."""
    result = {}
    for option, variable, joint in _TRANSLATION:
        names = (variable, *_UV_SYNONYMS.get(variable, ()))
        if not settings.get(option) or any(environ.get(name) for name in names):
            continue
        value = settings[option]
        result[variable] = joint.join(value.split()) if joint else value
    if not environ.get("UV_INDEX_STRATEGY"):
        # pip looks in all indexes; uv would stop at the first that knows the name. The hashes
        # decide what is installed, so no index can slip in another file.
        result["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return result


def uv_index_options(settings: Mapping[str, str]) -> list[str]:
    """What uv takes only on its command line."""
    return ["--no-index"] if settings.get("no-index", "").lower() in ("1", "true", "yes") else []


def without_credentials(text: str) -> str:
    """Addresses with user and password taken out, for messages."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)


# uv wraps its lines, so these are matched with all white space made single blanks.
_NOT_OFFERED = re.compile(r"there (?:is|are) no versions? of ([\w.-]+)==([\w.+!-]+?)[.,]? ")
_UNKNOWN = re.compile(r"([\w.-]+) was not found in the (?:package registry|provided package loc)")
_NO_WHEEL = re.compile(r"has no wheels with a matching|has no usable wheels")
_MISMATCH = re.compile(r"[Hh]ash mismatch|DO NOT MATCH THE HASHES")
_OFFLINE = re.compile(
    r"dns error|[Cc]onnection (?:refused|reset|error)|[Cc]ould not (?:fetch|connect)|timed out"
    r"|Temporary failure in name resolution|error sending request|Failed to (?:fetch|download)"
)
_DISK_FULL = re.compile(r"No space left on device|os error 28|Disk quota exceeded")


def explain(failure: StepFailure, lines: Sequence[str], what: str) -> StepFailure:
    """A failure of pip or uv in terms its user can act on, from what the program printed."""
    tail = "\n".join(without_credentials(line) for line in lines[-15:])
    text = re.sub(r"\s+", " ", " ".join(lines))
    if _DISK_FULL.search(text):
        return StepFailure(
            f"the disk filled up while installing {what}",
            code="disk_full",
            cause=tail,
            remedy="df -h; free space, then: runbook run",
            retryable=True,
        )
    if _MISMATCH.search(text):
        return StepFailure(
            f"a package of {what} is not the one that was locked",
            code="hash_mismatch",
            cause=tail,
            remedy="use an index that serves the original files (pip config list), or make a lock "
            "from yours (make lock)",
        )
    if _NO_WHEEL.search(text):
        return PreconditionNotMet(
            f"the package index has no wheel of {what} for this Python or machine",
            code="wheel_not_offered",
            cause=tail,
            remedy="choose another Python, for instance: runbook run --set python=3.11",
        )
    if missing := _NOT_OFFERED.search(text):
        name, version = missing[1], missing[2]
        if name == "torch" and "+" in version:
            flavour = version.partition("+")[2]
            return PreconditionNotMet(
                f"the package index does not offer torch {version}",
                code="torch_build_not_offered",
                cause=f"a plain index has only the default build of torch; the {flavour} build is "
                "on PyTorch's own wheel index",
                remedy=f"set PIP_EXTRA_INDEX_URL (or PIP_FIND_LINKS) to PyTorch's {flavour} wheel "
                "index, then: runbook run",
            )
        return _not_offered(f"{name} {version}", tail)
    if missing := _UNKNOWN.search(text):
        return _not_offered(missing[1], tail)
    if _OFFLINE.search(text):
        return StepFailure(
            f"the package index did not answer while installing {what}",
            code="index_unreachable",
            cause=tail,
            remedy="runbook run  (what was downloaded is kept); behind a proxy set PIP_PROXY, for "
            "a mirror PIP_INDEX_URL",
            retryable=True,
        )
    failure.cause = tail or failure.cause
    return failure


@contextmanager
def while_writing(report: Callable[[], None], interval: float = 5.0) -> Iterator[None]:
    """Call `report` every `interval` seconds in which a child of this process wrote something."""
    ended = threading.Event()

    def watch() -> None:
        seen = written_by_children()
        while not ended.wait(interval):
            now = written_by_children()
            if now != seen:
                seen = now
                report()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def written_by_children() -> int:
    """Bytes that the living children of this process have written (`wchar` of proc(5))."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            for child in (task / "children").read_text().split():
                for line in Path(f"/proc/{child}/io").read_text().splitlines():
                    name, _, value = line.partition(": ")
                    total += int(value) if name == "wchar" else 0
        except OSError:  # it ended meanwhile
            continue
    return total


def _not_offered(package: str, tail: str) -> StepFailure:
    return PreconditionNotMet(
        f"the package index does not offer {package}",
        code="package_not_offered",
        cause=tail,
        remedy="set PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to where it is",
    )


def file_requirement(name: str, wheel: Path, sha256: str) -> str:
    """A requirement line for a wheel on this machine."""
    return f"{name} @ file://{urllib.parse.quote(str(wheel))} --hash=sha256:{sha256}"


def uv(ctx: Context, *arguments: str | Path, what: str) -> None:
    """Run uv with the indexes that pip is configured with; raises what `explain` makes of it.

    Progress is in bytes of the downloads that uv announces (those of more than 1 MiB), and is
    reported anew while uv writes: one large package on a slow line may take very long.
    """
    settings = pip_settings()
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
                env=uv_environment(settings, os.environ),
                on_line=follow,
            )
    except StepFailure as failure:
        raise explain(failure, lines, what) from failure
