"""The step `mtp`: checks that a checkpoint has its draft head and that the vLLM which will load
it loads it right, and mends what can be mended in new files beside the download."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runbook.protocol import (
    Check,
    Context,
    Json,
    Model,
    PreconditionNotMet,
    Reason,
    StepFailure,
)
from runbook.remedy import Remedy
from runbook.steps.common import remote_code
from runbook.steps.common.stamp import RESULT, Stamp, difference, marks_of_all
from runbook.steps.mtp import artifact

if TYPE_CHECKING:
    from runbook.steps.checkpoint.lint import Finding
    from runbook.steps.checkpoint.lint.subject import Subject

KIND = "mtp"
STAMP = ".mtp.json"
SPARE = 1 << 30
"""Bytes of disk that must stay free."""


class Mtp:
    """Makes `destination` from `source`, with links where nothing changes. A stamp in it records
    the inputs and the size and time of each file, so that a quick check only calls stat."""

    version = "1"
    Inputs = Model("runbook.steps.mtp.models:Inputs")
    Outputs = Model("runbook.steps.mtp.models:Outputs")

    def check(self, ctx: Context) -> Check:
        source, destination = _folders(ctx)
        stamp = Stamp.read(destination / STAMP, KIND)
        folders = {"source": source, RESULT: destination}
        if reason := artifact.unlike(ctx, stamp, self.version, folders):
            return Check.unsatisfied(reason)
        assert stamp is not None
        if ctx.deep and (reason := _relint(ctx, destination)):
            return Check.unsatisfied(reason)
        return Check.satisfied(_outputs(destination, stamp.made))

    def apply(self, ctx: Context) -> None:
        from runbook.steps.checkpoint.lint import examine
        from runbook.steps.common.disk import disk_failure
        from runbook.steps.mtp import mend, write

        source, destination = _folders(ctx)
        before = marks_of_all(source)
        about = _open(source)
        findings = _findings(ctx, about)
        for finding in findings:
            ctx.log(f"{finding.severity}: {finding.id}: {finding.detail}")
        if ctx.inputs.mend == "auto":
            plan = mend.plan(about, findings, ctx.inputs.aliases)
        else:
            plan = mend.Plan(about.checkpoint.config)
        _refuse(source, [f for f in findings if f.id not in plan.mended])
        _afford(destination, write.cost(about.checkpoint, plan))
        for shard in sorted(plan.shards):
            ctx.log(f"writing {shard} anew")
        partial = destination.with_name(destination.name + ".partial")
        try:
            write.build(
                source,
                about.checkpoint,
                plan,
                partial,
                lambda done, total: ctx.progress(done, total, "bytes", "mending weights"),
            )
        except OSError as error:
            raise disk_failure(error, partial) from error
        mended = _open(partial)
        left = _findings(ctx, mended)
        _refuse(partial, left)
        if difference(before, marks_of_all(source)):
            raise StepFailure(
                f"{source} changed while it was read",
                code="source_changed",
                remedy="run again once nothing writes there",
                retryable=True,
            )
        for finding in left:
            ctx.log(f"left: {finding.severity}: {finding.id}: {finding.detail}")
        incomplete = {"mtp_stripped", "mtp_incomplete", "dspark_incomplete", "dspark_stages"}
        head = not incomplete & {f.id for f in examine(mended, artifact.target(ctx))}
        made = {
            "findings": sum(f.severity != "info" for f in left),
            "head": head,
            "mended": sorted(plan.mended),
        }
        files = {"source": before, RESULT: marks_of_all(partial)}
        versions = {"step": self.version}
        Stamp(KIND, vars(ctx.inputs), versions, files, made).write(partial / STAMP)
        _replace(partial, destination)

    def undo(self, ctx: Context) -> None:
        _, destination = _folders(ctx)
        for suffix in ("", ".partial", ".old"):
            folder = destination.with_name(destination.name + suffix)
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)


def _folders(ctx: Context) -> tuple[Path, Path]:
    own = str(ctx.inputs.destination or "model")
    source, destination = Path(ctx.inputs.source), ctx.workspace / own
    inside = destination.resolve().is_relative_to(ctx.workspace.resolve())
    if not inside or destination.resolve() in (ctx.workspace.resolve(), source.resolve()):
        raise StepFailure(
            f"destination {own} is not a folder of its own inside the workspace",
            code="bad_destination",
            remedy="give a folder inside the workspace, such as model",
        )
    return source, destination


def _outputs(destination: Path, made: Mapping[str, Json]) -> dict[str, Json]:
    return {"path": str(destination), **made, "code": {**remote_code.files(destination)}}


def _open(folder: Path) -> Subject:
    from runbook.steps.checkpoint.checkpoint import CheckpointError, open_folder
    from runbook.steps.checkpoint.lint import subject

    try:
        return subject(open_folder(folder))
    except CheckpointError as error:
        raise PreconditionNotMet(
            error.message, code="no_checkpoint", remedy=error.remedy, where=str(folder)
        ) from error


def _findings(ctx: Context, about: Subject) -> list[Finding]:
    from runbook.steps.checkpoint.lint import examine

    found = examine(about, artifact.target(ctx))
    if ctx.inputs.require_head:
        return found
    return [f for f in found if f.id != "mtp_stripped"]


def _refuse(folder: Path, findings: list[Finding]) -> None:
    """Raise for findings of severity error, the missing head first."""
    errors = [f for f in findings if f.severity == "error"]
    if not errors:
        return
    errors.sort(key=lambda f: f.id != "mtp_stripped")
    first = errors[0]
    reasons = [
        Reason(f.id, f"{f.detail}: {', '.join(f.tensors[:3])}".rstrip(": "), _remedy(f))
        for f in errors
    ]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    named = f": {', '.join(first.tensors[:3])}" if first.tensors else ""
    raise StepFailure(
        f"the checkpoint cannot be served: {first.detail}{named}{more}",
        code=first.id,
        cause="\n".join(f"{r.code}: {r.message}" for r in reasons)
        if len(errors) > 1
        else first.consequence,
        remedy=_remedy(first),
        where=str(folder),
        reasons=reasons,
    )


def _remedy(finding: Finding) -> str | Remedy:
    from runbook.steps.checkpoint.lint.rules import DOWNLOAD

    if finding.remedy != DOWNLOAD:
        return finding.remedy
    return Remedy("run", ("--force", "{step}"), "weights", f"{DOWNLOAD}: {{command}}")


def _afford(destination: Path, needed: int) -> None:
    from runbook.steps.common.disk import shortage

    if failure := shortage(destination.parent, needed, SPARE):
        failure.cause = "shards with tensors to mend are written anew, the others are linked"
        raise failure


def _relint(ctx: Context, destination: Path) -> Reason | None:
    try:
        findings = _findings(ctx, _open(destination))
    except StepFailure as failure:
        return Reason(failure.code, failure.message, failure.remedy)
    for finding in findings:
        if finding.severity == "error":
            return Reason(finding.id, finding.detail, _remedy(finding))
    return None


def _replace(partial: Path, destination: Path) -> None:
    """Give a finished folder its name; what had it before is removed. Between the two renames
    there is no destination, which `check` tells and `apply` repairs."""
    old = destination.with_name(destination.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    partial.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
