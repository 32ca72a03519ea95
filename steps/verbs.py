"""The verbs that steps add to the program: `runbook lint` and `runbook patches`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
# The vLLM whose needs count when none is named: release and patch series of the flagship book.
DEFAULT_TARGET = ("0.33.0", "0.33.0")


def _print(answer: Mapping[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(answer, ensure_ascii=False) if as_json else text)


@click.command()
@click.argument("checkpoint")
@click.option("--target", help="The vLLM release to serve it. Default: that of deepseek-v4-flash.")
@click.option("--series", help="The patch series that the release has. Default: none, if --target.")
@JSON_OPTION
def lint(checkpoint: str, target: str | None, series: str | None, as_json: bool) -> int:
    """Examine a CHECKPOINT (a folder, or org/name[@revision] on the hub) by its headers alone.

    Exits 3 if a finding is an error for the target.
    """
    from runbook.cli.envelope import document
    from runbook.errors import DONE, PRECONDITION, USAGE, RunbookError
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
    code = PRECONDITION if body["error"] else DONE
    counts = {f"{name}s": body.pop(name) for name in ("error", "warning", "info")}
    error = None
    if code:
        worst = findings[0]
        error = {
            "code": "findings",
            "message": f"{counts['errors']} error(s) for vLLM {build}: {worst.id}",
            "cause": worst.consequence,
            "remedy": worst.remedy,
            "retryable": False,
            "where": checkpoint,
            "log": "",
        }
    answer = document("lint", code == DONE, {**body, **counts}, error=error)
    _print(answer, as_json, report.text(findings, sample))
    return code


@click.command()
@click.argument("target", required=False)
@click.option("--workspace", type=click.Path(path_type=Path), help="Whose environment to examine.")
@click.option("--lock", help="The locked release to examine: a file name in env/, or a path.")
@JSON_OPTION
def patches(target: str | None, workspace: Path | None, lock: str | None, as_json: bool) -> None:
    """Show the patch series for a TARGET vLLM and the state of each patch."""
    from runbook.cli import human
    from runbook.cli.envelope import document
    from runbook.planning.context import default_cache
    from runbook.steps.vllm.report import patches as table
    from runbook.steps.vllm.target import targets

    entries = [
        {"target": name, **entry}
        for name in ([target] if target is not None else targets())
        for entry in table(name, lock=lock, workspace=workspace, cache=default_cache())
    ]
    rows = [(e["target"], e["id"], e["state"] or "not examined", e["title"]) for e in entries]
    _print(document("patches", True, {"patches": entries}), as_json, human.table(rows, key=2))
