"""The folder that a step of the book `mtp-head` makes: its place, its stamp, its check."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runbook.protocol import Check, Context, Json, Reason, StepFailure
from runbook.steps.common.stamp import RESULT, Stamp, marks_of_all

if TYPE_CHECKING:
    from runbook.steps.checkpoint.targets import Target

STAMP = ".made.json"


def place(ctx: Context) -> Path:
    """The folder a step makes. Raises `StepFailure` if it is not inside the workspace."""
    folder = (ctx.workspace / str(ctx.inputs.destination)).resolve()
    if ctx.workspace.resolve() not in folder.parents:
        raise StepFailure(
            f"destination {ctx.inputs.destination} is not a folder inside the workspace",
            code="bad_destination",
            remedy="give a folder inside the workspace",
        )
    return folder


def check(
    ctx: Context,
    kind: str,
    version: str,
    sources: Mapping[str, Path],
    outputs: Callable[[Mapping[str, Any]], Mapping[str, Json]],
) -> Check:
    """Whether the folder is there, made from these inputs and sources, and unchanged; `outputs`
    of what was recorded of it."""
    folder = place(ctx)
    stamp = Stamp.read(folder / STAMP, kind)
    if reason := unlike(ctx, stamp, version, {**sources, RESULT: folder}):
        return Check.unsatisfied(reason)
    assert stamp is not None
    return Check.satisfied(outputs(stamp.made))


def unlike(
    ctx: Context, stamp: Stamp | None, version: str, folders: Mapping[str, Path]
) -> Reason | None:
    """How inputs, version and the files of `folders`, by their group in the stamp, differ from what
    is recorded; None if they do not. The folder made is the group RESULT."""
    if stamp is None:
        return Reason("not_made", f"{folders[RESULT]} is not made")
    if stamp.changed(inputs=vars(ctx.inputs), versions={"step": version}):
        return Reason("inputs_changed", "made from other inputs")
    present = {group: marks_of_all(folder) for group, folder in folders.items()}
    if changed := stamp.changed(files=present):
        code = "result_changed" if changed.group == RESULT else "source_changed"
        return Reason(code, f"{folders[changed.group]}: {changed}")
    return None


def record(
    ctx: Context, kind: str, version: str, folder: Path, sources: Mapping[str, Path], **made: Json
) -> None:
    files = {group: marks_of_all(path) for group, path in {**sources, RESULT: folder}.items()}
    Stamp(kind, vars(ctx.inputs), {"step": version}, files, made).write(folder / STAMP)


def target(ctx: Context) -> Target:
    """The vLLM build that the inputs name. Raises `StepFailure` for one that is not known."""
    from runbook.steps.checkpoint.targets import Target, UnknownTarget

    try:
        return Target(ctx.inputs.target, ctx.inputs.series)
    except UnknownTarget as error:
        raise StepFailure(
            str(error),
            code="unknown_target",
            remedy="correct `target` and `series` in the book: those that the vLLM was built from",
        ) from error


def remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
