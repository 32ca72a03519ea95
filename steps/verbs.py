"""The verbs that steps add to the program: `runbook diagnose`, `lint` and `patches`.

Each gives plain data, which the program prints: `body`, the fields of its JSON answer; `text`, or
`rows` of a table, for people; `error`, if there is one: then the exit code is 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (pydantic before Python 3.12)

from runbook.errors import USAGE, RunbookError, error_dict
from runbook.shapes import Error

# The vLLM whose needs count when none is named: release and patch series of the flagship book.
DEFAULT_TARGET = ("0.33.0", "0.33.0")


class Finding(TypedDict):
    """One fault of a checkpoint, with its severity for the target asked for and for each known."""

    id: str
    severity: Literal["error", "warning", "info"]
    detail: str
    tensors: list[str]
    tensor_count: int
    consequence: str
    remedy: str
    severities: dict[str, str]


class Scales(TypedDict):
    """Of how many tensors of scales how many were looked at, and what share of all their bytes."""

    tensors: int
    examined: int
    share: float


class Lint(TypedDict):
    """The answer of `lint`."""

    checkpoint: str
    target: str
    series: str
    errors: int
    warnings: int
    infos: int
    findings: list[Finding]
    scales: Scales


class Root(TypedDict):
    """The first true error of a log. `line` counts from 1; `process`, if the log names it; `kind`,
    the type of an exception."""

    process: str
    kind: str
    message: str
    line: int


class Diagnose(TypedDict):
    """The answer of `diagnose`. `found`: whether a failure is to be seen; `lines` show the error
    with its surroundings; `diagnosis` is the known failure that it is."""

    found: bool
    root: Root | None
    lines: list[str]
    diagnosis: Error | None


class Profile(TypedDict):
    """One profile of a serve step; `figures` say what it reaches, each with its provenance."""

    step: str
    name: str
    default: bool
    flags: dict[str, Any]
    figures: list[dict[str, Any]]


class Profiles(TypedDict):
    """The answer of `profiles`."""

    book: str
    profiles: list[Profile]


class PatchedFile(TypedDict):
    """A touched file, with the SHA-256 before and after; None where it is not there, or unknown."""

    path: str
    before: str | None
    after: str | None


class Patch(TypedDict):
    target: str
    id: str
    title: str
    state: Literal["absent", "applied", "conflicting", "not_needed"] | None
    conflict: str | None
    reason: str
    source: str | None
    why: str
    symptom: str
    upstream: str
    version: str
    file: str
    files: list[PatchedFile]


class Patches(TypedDict):
    """The answer of `patches`."""

    patches: list[Patch]


class BookSteps(TypedDict):
    """What is known of a book before it runs."""

    name: str
    steps: list[dict[str, Any]]


class Said(TypedDict):
    """What a verb of steps gives to the program."""

    body: Any
    text: NotRequired[str]
    rows: NotRequired[list[list[str]]]
    error: NotRequired[dict[str, Any] | None]


def lint(*, checkpoint: str, target: str | None, series: str | None, cache: Path) -> Said:
    """The findings of a checkpoint, a folder or org/name[@revision] on the hub."""
    from runbook.steps.checkpoint.checkpoint import CheckpointError
    from runbook.steps.checkpoint.lint import lint as examine
    from runbook.steps.checkpoint.lint import report
    from runbook.steps.checkpoint.lint.scales import Sample
    from runbook.steps.checkpoint.targets import Target, UnknownTarget

    release, patched = (target, "") if target else DEFAULT_TARGET
    try:
        build = Target(release, patched if series is None else series)
    except UnknownTarget as problem:
        raise RunbookError(
            str(problem),
            code="unknown_target",
            exit_code=USAGE,
            remedy="name a release with --target and, if it is patched, its --series",
        ) from problem
    sample = Sample()
    try:
        findings = examine(checkpoint, build, sample)
    except CheckpointError as problem:
        raise RunbookError(
            report.printable(str(problem)),
            code="no_checkpoint",
            exit_code=USAGE,
            remedy=report.printable(problem.remedy),
        ) from problem
    body = {"checkpoint": checkpoint, **report.plain(findings, build, sample)}
    counts = {f"{name}s": body.pop(name) for name in ("error", "warning", "info")}
    error = None
    if counts["errors"]:
        worst = findings[0]
        error = error_dict(
            "findings",
            f"{counts['errors']} error(s) for vLLM {build}: {worst.id}",
            cause=worst.consequence,
            remedy=worst.remedy,
            where=checkpoint,
        )
    return {"body": {**body, **counts}, "text": report.text(findings, sample), "error": error}


def patches(*, target: str | None, workspace: Path | None, lock: str | None, cache: Path) -> Said:
    """The patch series for a target, or for all, and the state of each patch."""
    from runbook.steps.vllm.report import patches as table
    from runbook.steps.vllm.target import targets

    entries = [
        {"target": name, **entry}
        for name in ([target] if target is not None else targets())
        for entry in table(name, lock=lock, workspace=workspace, cache=cache)
    ]
    rows = [
        [e["target"], e["id"], e["state"] or "not examined", e["reason"] or e["title"]]
        for e in entries
    ]
    return {"body": {"patches": entries}, "rows": rows}


MOST_LOG = 64 << 20
"""Bytes of a log that are read, its end: what failed is there."""


def diagnose(file: str, kind: str | None, cache: Path) -> dict[str, Any]:
    """What a log of any origin says of a failure."""
    from runbook.steps.common.diagnoses import diagnose as known_failure
    from runbook.steps.common.diagnoses import excerpt, root_error

    text = _read_log(file)
    lines = text.splitlines()
    error, known = root_error(text), known_failure(kind or "", text)
    shown = [lines[number] for number in excerpt(text)]
    if not shown and known is not None:
        shown = known.line.splitlines()
    said = known.failure("a known failure", "") if known is not None else None
    body = {
        "found": error is not None or known is not None,
        "root": error
        and {
            "process": error.process,
            "kind": error.kind,
            "message": error.message,
            "line": error.first + 1,
        },
        "lines": shown,
        "diagnosis": said and said.error_dict(),
    }
    if not shown:
        text = "no failure is to be seen in it"
    else:
        told = [f"{said.code}: {said.cause}", f"remedy: {said.remedy}"] if said else []
        text = "\n".join([*shown, *(["", *told] if told else [])])
    return {"body": body, "text": text}


def _read_log(file: str) -> str:
    import os
    import sys

    try:
        if file == "-":
            return sys.stdin.buffer.read(MOST_LOG).decode(errors="replace")
        with open(file, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - MOST_LOG))
            return log.read().decode(errors="replace")
    except OSError as problem:
        raise RunbookError(
            f"cannot read {file}",
            code="not_readable",
            exit_code=USAGE,
            cause=str(problem),
            remedy="name a log file, or give its text on standard input",
        ) from problem


def profiles(*, book: BookSteps, cache: Path) -> Said:
    """The profiles of each step that serves."""
    from runbook.steps.common.flags.profiles import NoProfile, chosen, described, words

    found, lines = [], []
    for step in book["steps"]:
        if step["uses"] != "serve":
            continue
        given = step["with"]
        try:
            default, reason = chosen(given)
        except NoProfile as problem:
            default, reason = None, str(problem)
        lines += [reason] if reason else []
        for name, told in (given.get("profiles") or {}).items():
            found.append({"step": step["id"], **described(name, told, name == default)})
    for profile in found:
        flags = ", ".join(f"{key} {_plain(value)}" for key, value in profile["flags"].items())
        mark = " (default)" if profile["default"] else ""
        lines.append(f"{profile['name']}{mark}: {flags}")
        lines += [f"  {words(figure)}" for figure in profile["figures"]]
    text = "\n".join(lines) or f"{book['name']} has no profiles"
    return {"body": {"book": book["name"], "profiles": found}, "text": text}


def _plain(value: Any) -> str:
    """A flag's value as one types it."""
    return value if isinstance(value, str) else json.dumps(value)
